"""Tables as text: in columns, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: bool = False) -> str:
    """A Markdown table, whose last line has no line break after it.

    Args:
        head: above the columns.
        rows: as many cells as the head has. A ``|`` in a cell is escaped, all other Markdown is left as it is.
        align: pad cells, so that the columns of the source stand below each other.
    """
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    if align:
        cells = _padded(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of text for each row, its columns two spaces apart."""
    return ["  ".join(row).rstrip() for row in _padded(rows)]


def _padded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Cells with spaces after them, all of a column as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def pair(counts: tuple[int, int] | None) -> str:
    """``remaining/dense``; nothing for None."""
    return "" if counts is None else f"{counts[0]:,}/{counts[1]:,}"


def share(counts: tuple[int, int]) -> str:
    """``remaining of dense (percent)``."""
    remaining, dense = counts
    return f"{remaining:,} of {dense:,} ({remaining / max(dense, 1):.1%})"
