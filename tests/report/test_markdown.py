"""Tables in Markdown."""

from __future__ import annotations

from zerogate.report.markdown import grid


def test_a_grid_has_a_line_for_its_head_and_every_row() -> None:
    assert grid(["", "a|b"], [["x", "1"], ["long", "2"]]) == "|  | a\\|b |\n| --- | --- |\n| x | 1 |\n| long | 2 |"
    assert grid(["a"], []) == "| a |\n| --- |"


def test_an_aligned_grid_can_be_read_in_a_terminal() -> None:
    lines = grid(["row", "a|b"], [["x", "1"], ["longer", "2"]], aligned=True).splitlines()
    assert lines == ["| row    | a\\|b |", "| ---    | ---  |", "| x      | 1    |", "| longer | 2    |"]
