"""Reports in a terminal: both tables, with rich and without."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from report_samples import Unfollowed, closed, odd, shown
from zerogate.cli.output import print_report


def test_rich_shows_both_tables() -> None:
    text = shown(odd())
    for part in (
        "a|b",
        "1,234/5,678",
        "x[:, :32] | y has no rule in <lambda> (a.py:3)",
        "a[0]",
        "a, b",
        "[red]c",
        "made by",
    ):
        assert part in text
    assert text.splitlines()[-1].startswith("channels and heads 1 of 2")
    narrow = shown(closed(Unfollowed(), torch.randn(5, 2, 3)).report(), width=60)
    assert max(map(len, narrow.splitlines())) <= 60 and "…" not in narrow


def test_the_command_prints_tables_into_a_terminal_only(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    print_report(odd())
    assert capsys.readouterr().out.strip() == str(odd())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    print_report(odd())
    assert "made by" in capsys.readouterr().out
    print_report("[b]trained without gates")
    assert capsys.readouterr().out == "[b]trained without gates\n"
    monkeypatch.setitem(sys.modules, "rich.console", None)
    print_report(odd())
    assert capsys.readouterr().out.strip() == str(odd())
