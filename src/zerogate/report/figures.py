"""Figures that compare runs, and a page to put them on: one HTML file that opens from disk."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from zerogate.files import write

Results = Mapping[str, Mapping[str, Any]]
"""What result.json holds, by the run's label; labels before a colon name the series."""

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "zerogate", "axes.spines.top": False, "axes.spines.right": False}


def accuracy_against_sparsity(results: Results) -> Figure:
    """Test accuracy of every run over the share of parameters that it removed, one series for each method."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
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
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
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
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, points in histories.items():
        axes.plot([p[0] for p in points], [p[1] for p in points], label=label)
    axes.set(xlabel="epoch", ylabel="L0 term / λ", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    return figure


def kept_channels(results: Results) -> Figure:
    """Kept units of every group, a row of bars for each gated run."""
    gated = {label: result for label, result in results.items() if result.get("groups")}
    figure = Figure(figsize=(7, 1 + 1.1 * len(gated)), layout="constrained")
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


def svg(figure: Figure) -> str:
    """A figure as an inline SVG element."""
    drawn = svg_document(figure)
    return drawn[drawn.index("<svg") :]


def svg_document(figure: Figure) -> str:
    """A figure as a whole SVG file, the same text for the same figure."""
    text = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; first column left, figures right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def page(title: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole HTML document of (heading, sentence, body) sections."""
    parts = [f"<h2>{html.escape(head)}</h2><p>{html.escape(text)}</p>{body}" for head, text, body in sections]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;font-size:14px}td,th{padding:.3em .7em;border-bottom:1px solid #ddd;"
        "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def write_page(path: Path, title: str, sections: Sequence[tuple[str, str, str]]) -> None:
    """Writes `page` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, page(title, sections).encode())
