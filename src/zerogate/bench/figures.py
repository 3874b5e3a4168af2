"""A table as a plot: one panel for every cost, a series for every method, error bars of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from zerogate.bench import columns
from zerogate.bench.render import Line, Rendered, Section


def plot(table: Rendered) -> Figure | None:
    """Rows of panels, one row for every section; None for a table that asks for no plot, or has nothing to show.

    `plot` of the definition: `y`, a column; `x`, columns; `series`, from the name of a series to how its rows' ids begin.
    """
    wanted = table.plot
    if wanted is None:
        return None
    shown = [
        section for section in table.sections if _points(section, wanted["y"], wanted["x"][0], list(section.lines))
    ]
    if not shown:
        return None
    figure = Figure(figsize=(4.2 * len(wanted["x"]), 3.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), len(wanted["x"]), squeeze=False)
    for row, section in zip(panels, shown, strict=True):
        for axes, x in zip(row, wanted["x"], strict=True):
            _panel(axes, section, wanted, x)
        row[0].set_title(section.title, loc="left", fontsize=9)
        row[0].legend(frameon=False, fontsize=7)
    return figure


def _panel(axes: Any, section: Section, wanted: Mapping[str, Any], x: str) -> None:
    for (name, start), marker in zip(wanted["series"].items(), "o*sD^vPX<>" * len(wanted["series"]), strict=False):
        starts = tuple(start) if isinstance(start, list) else (start,)
        lines = [line for line in section.lines if line.id.startswith(starts)]
        points = sorted(_points(section, wanted["y"], x, lines))
        if points:
            xs, ys, widths, heights = zip(*points, strict=True)
            line = "none" if len(points) == 1 or name in wanted.get("loose", ()) else "-"
            axes.errorbar(xs, ys, heights, widths, marker=marker, linestyle=line, markersize=5, linewidth=1, capsize=2,
                          label=name)  # fmt: skip
    axes.set(xlabel=columns.column(x).head, ylabel=columns.column(wanted["y"]).head)
    if x in wanted.get("log", ()):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)


def _points(section: Section, y: str, x: str, lines: Sequence[Line]) -> list[tuple[float, float, float, float]]:
    """(x, y, standard deviation of x, of y) of the rows that have both."""
    found = []
    for line in lines:
        across, up = line.cells.get(x), line.cells.get(y)
        if across is not None and up is not None and across.mean is not None and up.mean is not None:
            found.append((across.mean, up.mean, across.std or 0.0, up.std or 0.0))
    return found
