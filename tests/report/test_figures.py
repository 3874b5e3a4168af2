"""Figures: well formed, and every number where it belongs."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from matplotlib.container import ErrorbarContainer

from zerogate.report import figures as plots
from zerogate.report.figures import Panel, Point, Series

GROUPS = [{"name": "stem", "kept": 3, "units": 8}, {"name": "head", "kept": 1, "units": 2}]
RESULTS = {
    "dense": {"sparsity_params": 0.0, "test_accuracy": 0.99},
    "scratch: λ=1": {"sparsity_params": 0.5, "test_accuracy": 0.97, "groups": GROUPS},
    "scratch: λ=2": {"sparsity_params": 0.8, "test_accuracy": 0.91, "groups": GROUPS},
}


def test_figures_are_well_formed_svg_with_their_text() -> None:
    figures = [
        plots.accuracy_against_sparsity(RESULTS),
        plots.l0_over_training({"λ=1": [(1, 0.9), (2, 0.5)]}),
        plots.kept_channels(RESULTS),
    ]
    drawn = [plots.svg(f) for f in figures]
    for text in drawn:
        ET.fromstring(text)  # well formed
    assert "λ=2" in drawn[0]
    assert "stem" in drawn[2]


def test_a_figure_is_the_same_text_every_time() -> None:
    first, second = (plots.svg_document(plots.kept_channels(RESULTS)) for _ in range(2))
    assert first == second and first.startswith("<?xml") and first.endswith(plots.svg(plots.kept_channels(RESULTS)))


def test_accuracy_is_drawn_where_it_belongs() -> None:
    axes = plots.accuracy_against_sparsity(RESULTS).axes[0]
    series = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert series == {"dense": [[0, 99]], "scratch": [[50, 97], [80, 91]]}


def test_panels_draw_series_in_order_with_their_errors() -> None:
    ours = Series("ours", [Point(4.0, 2.0, 0.5, 0.25), Point(1.0, 3.0)])
    loose = Series("loose", [Point(1.0, 1.0), Point(2.0, 2.0)], joined=False)
    wide = Panel([ours, Series("none", []), loose], "cost", "accuracy", log=True)
    figure = plots.panels([("first", [wide, Panel([ours], "other", "accuracy")]), ("second", [wide, wide])])
    assert len(figure.axes) == 4
    axes = figure.axes[0]
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_xscale()) == ("first", "cost", "log")
    assert (figure.axes[1].get_title(loc="left"), figure.axes[1].get_xscale()) == ("", "linear")
    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert [bar.get_label() for bar in bars] == ["ours", "loose"]
    assert bars[0].lines[0].get_xydata().tolist() == [[1, 3], [4, 2]]
    assert [bar.lines[0].get_linestyle() for bar in bars] == ["-", "None"]
    assert [bar.lines[0].get_marker() for bar in bars] == ["o", "s"]  # a series without points keeps its marker
    across, up = bars[0].lines[2]
    low, high = across.get_segments()[1][:, 0]
    assert (low, high) == (3.5, 4.5)
    low, high = up.get_segments()[1][:, 1]
    assert (high - low) / 2 == pytest.approx(0.25)
