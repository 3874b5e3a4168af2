"""The one printer of Markdown tables, and of tables in columns."""

from __future__ import annotations

from zerogate.report.text import markdown_table, pair, plain_table, share


def test_a_markdown_table_escapes_what_would_end_a_cell() -> None:
    assert markdown_table(["a", ""], [["1|2", "<b>"]]) == "| a |  |\n| --- | --- |\n| 1\\|2 | <b> |"


def test_an_aligned_markdown_table_has_its_columns_below_each_other() -> None:
    lines = markdown_table(["kind", "n"], [["dense", "10"], ["a|b", "1"]], align=True).splitlines()
    assert lines == ["| kind  | n   |", "| ---   | --- |", "| dense | 10  |", "| a\\|b  | 1   |"]
    assert len({len(line) for line in lines}) == 1


def test_a_markdown_table_without_rows_is_its_head() -> None:
    assert markdown_table(["a", "b"], []) == "| a | b |\n| --- | --- |"


def test_a_plain_table_has_columns_two_spaces_apart_and_no_spaces_at_the_end() -> None:
    assert plain_table([("a", "bcd", ""), ("ab", "c", "d"), ("", "", "")]) == ["a   bcd", "ab  c    d", ""]


def test_counts_are_spelled_out_with_their_share() -> None:
    assert pair((1234, 5678)) == "1,234/5,678" and pair(None) == ""
    assert share((1234, 5678)) == "1,234 of 5,678 (21.7%)" and share((0, 0)) == "0 of 0 (0.0%)"
