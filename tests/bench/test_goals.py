"""Goals of rows, and the smallest network that is good enough."""

from __future__ import annotations

from typing import Any

from tiny_table import TINY, a_record, some_records
from zerogate.bench.render import render
from zerogate.bench.table import parse


def test_goals_and_smallest_networks() -> None:
    rows: Any = TINY["rows"]
    dense, ours = rows
    content = TINY | {
        "smallest": [{"section": "", "what": "Smallest", "column": "test_accuracy", "limit": 90, "least": "params"},
                     {"section": "", "what": "Best", "column": "test_accuracy", "limit": 99, "least": "params"}],
        "rows": [dense, ours | {"goal": {"test_accuracy": {"row": "dense", "plus": -0.25}, "params": 400}}],
    }  # fmt: skip
    section = render(parse("tiny", content), some_records()).sections[0]
    assert section.lines[1].goal == "≥ 90.75: missed by 0.25; ≤ 400: met"
    assert section.facts[:2] == [
        "Smallest (test accuracy % ≥ 90): ours, 0.5, 400 parameters, 90.50, n = 1.",
        "Best (test accuracy % ≥ 99): none of these rows.",
    ]


def test_a_goal_beside_the_row_that_validation_chooses() -> None:
    rows: Any = TINY["rows"]
    dense, ours = rows
    rates = [dense | {"id": f"dense-{rate}"} for rate in (0.1, 0.2)]
    content = TINY | {
        "rows": [*rates, ours | {"overrides": [], "goal": {"test_accuracy": {"best": "dense-*", "plus": 0.5}}}]
    }
    table = parse("tiny", content)
    of_dense = [a_record(row=row, digest=row, figures={"test_accuracy": test, "val_accuracy": val}) for row, test, val in
                (("dense-0.1", 0.8, 0.9), ("dense-0.2", 0.95, 0.85))]  # fmt: skip
    ours_alone = [some_records()[2]]
    assert render(table, of_dense + ours_alone).sections[0].lines[2].goal == "≥ 80.50: met"
    assert render(table, ours_alone).sections[0].lines[0].goal == ""  # none to compare with yet
    both = ours | {"overrides": [], "goal": {"test_accuracy": [{"best": "dense-*"}, {"row": "dense-0.2"}]}}
    table = parse("tiny", TINY | {"rows": [*rates, both]})
    goal = render(table, of_dense + ours_alone).sections[0].lines[2].goal
    assert goal == "≥ 80.00: met; ≥ 95.00: missed by 4.50"
