"""Everything that is drawn: figures that compare runs, panels of results with error bars, and their SVG.

The functions need matplotlib, which the library itself does without: they import it, and raise `ModuleNotFoundError`
without it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, Any]]
"""What result.json holds, by the run's label; labels before a colon name the series."""

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "zerogate", "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True, order=True)
class Point:
    """A result, with the standard deviations of both numbers."""

    x: float
    y: float
    x_std: float = 0.0
    y_std: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points of one colour and one marker."""

    label: str
    """What the legend calls it."""
    points: Sequence[Point]
    """Drawn in the order of their x."""
    joined: bool = True
    """Whether a line joins them."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    series: Sequence[Series]
    """Those without points are left out, and keep their marker."""
    x_label: str
    y_label: str
    log: bool = False
    """Whether x is on a logarithmic scale."""


def accuracy_against_sparsity(results: Results) -> Figure:
    """Test accuracy of every run over the share of parameters that it removed, one series for each method."""
    figure, axes = _single()
    series: dict[str, list[tuple[float, float, str]]] = {}
    for label, result in results.items():
        method, _, setting = label.partition(": ")
        series.setdefault(method, []).append((100 * result["sparsity_params"], 100 * result["test_accuracy"], setting))
    for (method, points), marker in zip(series.items(), "*osD^vPX" * len(series), strict=False):
        points.sort()
        axes.plot([p[0] for p in points], [p[1] for p in points], marker=marker, label=method, markersize=8)
        for x, y, setting in points:
            axes.annotate(setting, (x, y), textcoords="offset points", xytext=(6, 6), fontsize=8)
    axes.set(xlabel="parameters removed (%)", ylabel="test accuracy (%)")
    axes.margins(0.12)
    axes.legend(frameon=False)
    return figure


def accuracy_against_remaining(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean test accuracy over the share of the weights that remains, one line with error bars (standard deviations) for
    each kind; a kind without a density, the dense network, is a level line.

    Args:
        rows: with kind, density, remaining, test_accuracy and test_accuracy_std, None for a single run.
    """
    from matplotlib.ticker import NullLocator

    figure, axes = _single()
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind, marker in zip(kinds, "osD^vPX*" * len(kinds), strict=False):
        points = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["remaining"])
        y = [100 * row["test_accuracy"] for row in points]
        spread = [100 * (row["test_accuracy_std"] or 0) for row in points]
        if points[0]["density"] is None:
            axes.axhline(y[0], color="0.4", linestyle="--", label=kind)
            axes.axhspan(y[0] - spread[0], y[0] + spread[0], color="0.4", alpha=0.12, linewidth=0)
        else:
            axes.errorbar([100 * row["remaining"] for row in points], y, spread, marker=marker, capsize=3, label=kind)
    axes.set(xscale="log", xlabel="weights remaining (%)", ylabel="test accuracy (%)")
    ticks = sorted({100 * row["density"] for row in rows if row["density"] is not None})
    if ticks:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False)
    return figure


def l0_over_training(histories: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """The L0 term before its weight (expected share of open gates) over training: (epoch, value) pairs by label."""
    figure, axes = _single()
    for label, points in histories.items():
        axes.plot([p[0] for p in points], [p[1] for p in points], label=label)
    axes.set(xlabel="epoch", ylabel="L0 term / λ", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return figure


def kept_channels(results: Results) -> Figure:
    """Kept units of every group, a row of bars for each gated run."""
    gated = {label: result for label, result in results.items() if result.get("groups")}
    figure = _figure(7, 1 + 1.1 * len(gated))
    grid = figure.subplots(len(gated), 1, sharex=True, squeeze=False)
    for axes, (label, result) in zip(grid.flat, gated.items(), strict=True):
        names = [group["name"] for group in result["groups"]]
        axes.bar(names, [group["units"] for group in result["groups"]], color="0.88")
        bars = axes.bar(names, [group["kept"] for group in result["groups"]])
        axes.bar_label(bars, fontsize=7)
        axes.set_title(label, fontsize=8, loc="left")
        axes.tick_params(labelsize=7)
        axes.tick_params("x", rotation=20)
    return figure


def panels(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Figure:
    """Rows of panels below each other; a row's title and legend are in its first one.

    Args:
        rows: the title and the panels of each; at least one row, all of the same length.
    """
    width = len(rows[0][1])
    figure = _figure(4.2 * width, 3.6 * len(rows))
    grid = figure.subplots(len(rows), width, squeeze=False)
    for across, (title, row) in zip(grid, rows, strict=True):
        for axes, panel in zip(across, row, strict=True):
            _draw(axes, panel)
        across[0].set_title(title, loc="left", fontsize=9)
        across[0].legend(frameon=False, fontsize=7)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for series, marker in zip(panel.series, "o*sD^vPX<>" * len(panel.series), strict=False):
        points = sorted(series.points)
        if points:
            line = "-" if series.joined and len(points) > 1 else "none"
            axes.errorbar(
                [p.x for p in points], [p.y for p in points], [p.y_std for p in points], [p.x_std for p in points],
                marker=marker, linestyle=line, markersize=5, linewidth=1, capsize=2, label=series.label,
            )  # fmt: skip
    axes.set(xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _single() -> tuple[Figure, Axes]:
    """A figure of one pair of axes."""
    figure = _figure(7, 4.2)
    return figure, figure.add_subplot()


def svg(figure: Figure) -> str:
    """A figure as an SVG element to put into a page."""
    document = svg_document(figure)
    return document[document.index("<svg") :]


def svg_document(figure: Figure) -> str:
    """A figure as a whole SVG file, the same text for the same figure."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
