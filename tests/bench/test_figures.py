"""The plot of a table."""

from __future__ import annotations

import pytest

from tiny_table import TINY, some_records
from zerogate.bench.render import render
from zerogate.bench.table import parse


def test_the_plot_has_a_point_with_its_error_for_every_row() -> None:
    from matplotlib.container import ErrorbarContainer

    from zerogate.bench.figures import plot

    wanted = {"y": "test_accuracy", "x": ["params", "params_removed"], "series": {"dense": "dense", "ours": "ours-"}}
    table = parse("tiny", TINY | {"plot": wanted})
    figure = plot(render(table, some_records()))
    assert figure is not None and len(figure.axes) == 2
    bars = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert [bar.get_label() for bar in bars] == ["dense", "ours"]
    (x,), (y,) = bars[0].lines[0].get_data()
    assert (x, y) == (1000, 91)
    low, high = sorted(point[1] for point in bars[0].lines[2][1].get_segments()[0])
    assert (high - low) / 2 == pytest.approx(1.4142, abs=1e-3)
    assert plot(render(table, [])) is None
