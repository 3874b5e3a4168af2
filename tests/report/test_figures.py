"""Figures, the HTML page, and latency ratios."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.cost.stopwatch import latency_ratio
from zerogate.report import figures as plots

GROUPS = [{"name": "stem", "kept": 3, "units": 8}, {"name": "head", "kept": 1, "units": 2}]
RESULTS = {
    "dense": {"sparsity_params": 0.0, "test_accuracy": 0.99},
    "scratch: λ=1": {"sparsity_params": 0.5, "test_accuracy": 0.97, "groups": GROUPS},
    "scratch: λ=2": {"sparsity_params": 0.8, "test_accuracy": 0.91, "groups": GROUPS},
}


def test_the_page_is_one_file_with_its_figures_inside(tmp_path: Path) -> None:
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
    path = tmp_path / "new" / "report.html"
    plots.write_page(
        path, "a < b", [("Table", "one & two", plots.table(["x", "y"], [["1", "<2>"]])), ("F", "", drawn[0])]
    )
    page = path.read_text()
    assert "a &lt; b" in page
    assert "&lt;2&gt;" in page
    assert "src=" not in page  # nothing is fetched
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_accuracy_is_drawn_where_it_belongs() -> None:
    axes = plots.accuracy_against_sparsity(RESULTS).axes[0]
    series = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert series == {"dense": [[0, 99]], "scratch": [[50, 97], [80, 91]]}


def test_latency_ratio() -> None:
    big = nn.Sequential(*[nn.Linear(600, 600) for _ in range(4)]).train()
    x = torch.randn(64, 600)
    assert latency_ratio(nn.Linear(600, 2), big, x, rounds=5) < 0.6
    assert big[0].training
    with pytest.raises(zg.ZerogateError, match="got 0"):
        latency_ratio(big, big, x, rounds=0)
