"""A table as a figure: one panel for every cost, a series for every method, error bars of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zerogate.bench import columns
from zerogate.bench.render import Line, Rendered, Section
from zerogate.report.figures import Panel, Point, Series, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(table: Rendered) -> Figure | None:
    """Rows of panels, one row for every section; None for a table that asks for no plot, or has nothing to show.

    `plot` of the definition: `y`, a column; `x`, columns; `series`, from the name of a series to how its rows' ids begin;
    `loose`, names of series whose points no line joins; `log`, columns on a logarithmic scale.
    """
    if table.plot is None:
        return None
    y, xs = table.plot["y"], table.plot["x"]
    rows = [
        (section.title, [_panel(section, table.plot, x) for x in xs])
        for section in table.sections
        if _points(section.lines, xs[0], y)
    ]
    return panels(rows) if rows else None


def _panel(section: Section, plot: Mapping[str, Any], x: str) -> Panel:
    series = []
    for name, start in plot["series"].items():
        starts = tuple(start) if isinstance(start, list) else (start,)
        lines = [line for line in section.lines if line.id.startswith(starts)]
        series.append(Series(name, _points(lines, x, plot["y"]), name not in plot.get("loose", ())))
    log = x in plot.get("log", ())
    return Panel(series, columns.column(x).head, columns.column(plot["y"]).head, log)


def _points(lines: Sequence[Line], x: str, y: str) -> list[Point]:
    """The means of the rows that have both columns, with their standard deviations."""
    points = []
    for line in lines:
        across, up = line.cells.get(x), line.cells.get(y)
        if across is not None and up is not None and across.mean is not None and up.mean is not None:
            points.append(Point(across.mean, up.mean, across.std or 0.0, up.std or 0.0))
    return points
