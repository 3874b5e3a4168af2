"""Tables in a terminal, drawn by rich, where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = {"kept": "default", "shrunk": "green", "refused": "yellow"}
"""What a row of each status is printed in."""
COUNTS = frozenset({"in", "out", "weights", "units"})
"""Columns of numbers: they stand at the right and are never folded."""


@dataclass(frozen=True)
class StatusTable:
    """A table whose rows have a status, which colours them."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    statuses: Sequence[str]
    """One of `COLOURS` for each row."""


def renderable(tables: Sequence[StatusTable], lines: Sequence[str]) -> object:
    """What rich prints for these tables, one below the other, and bold lines below them.

    Raises `ModuleNotFoundError` where rich is not installed."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def drawn(table: StatusTable) -> Table:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in table.head:
            counts = name in COUNTS
            grid.add_column(name, justify="right" if counts else "left", no_wrap=counts, overflow="fold")
        for row, status in zip(table.rows, table.statuses, strict=True):
            grid.add_row(*(Text(cell, style=COLOURS[status]) for cell in row))  # as Text, brackets in it are no markup
        return grid

    return Group(*map(drawn, tables), *(Text(line, style="bold") for line in lines))
