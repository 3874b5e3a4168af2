"""Goals of rows and whether they are met, and which network is the smallest that is good enough.

`goal` of a row names columns. Of each it says a number that the mean over the runs should reach, or `{row: ROW, plus: X}` or
`{best: PATTERN, plus: X}`: the mean of another row, or of that row among those that the pattern matches which is best on
the validation images, plus X (0 if it is left out); or a list of such goals. Whether less is better, the column knows.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zerogate.bench import columns
from zerogate.bench.columns import Column, Figures, Value
from zerogate.bench.records import Record
from zerogate.bench.table import Plain, Row, Table

Chosen = Mapping[str, Sequence[Record]]
"""The records that a table shows, by row."""
ROUNDING = 1e-9
"""A mean may be this much worse than its limit: both are sums of floats."""


@dataclass(frozen=True)
class Goal:
    """A limit of a column, and the mean that a row has there."""

    column: Column
    limit: float
    mean: float

    @property
    def short(self) -> float:
        """By how much the mean misses the limit; 0 or less where the goal is met."""
        return self.mean - self.limit if self.column.lower else self.limit - self.mean

    @property
    def met(self) -> bool:
        """Whether the mean reaches the limit."""
        return self.short <= ROUNDING

    def __str__(self) -> str:
        digits = self.column.digits
        return f"{self.column.sign} {self.limit:,.{digits}f}: " + (
            "met" if self.met else f"missed by {self.short:,.{digits}f}"
        )


def figures_of(records: Iterable[Record]) -> list[Figures]:
    """The figures of each record, `seconds` among them."""
    return [{**record["figures"], "seconds": record["seconds"]} for record in records]


def goals_of(row: Row, table: Table, chosen: Chosen) -> list[Goal]:
    """The goals of a row that was run, without those beside a row that was not."""
    if row.goal is None or row.id not in chosen:
        return []
    goals = []
    for name, stated in row.goal.items():
        mean = columns.value(name, figures_of(chosen[row.id])).mean
        for one in stated if isinstance(stated, list) else [stated]:
            limit = _limit(name, one, table, chosen)
            if mean is not None and limit is not None:
                goals.append(Goal(columns.column(name), limit, mean))
    return goals


def _limit(name: str, stated: Plain | float, table: Table, chosen: Chosen) -> float | None:
    """The number that a goal of that column means; None as long as the other row has not been run."""
    if not isinstance(stated, Mapping):
        return float(stated)
    other = table.row(stated["row"]) if "row" in stated else _best(table, stated["best"], chosen)
    if other is None:
        return None
    figures = figures_of(chosen.get(other.id, [])) if other.kind else [other.figures]
    mean = columns.value(name, figures).mean
    return None if mean is None else mean + float(stated.get("plus", 0))


def _best(table: Table, pattern: str, chosen: Chosen) -> Row | None:
    """The row that is best on the validation images, of those that match and have been run."""
    best: tuple[float, Row] | None = None
    for row in table.rows:
        if row.id in chosen and fnmatch.fnmatch(row.id, pattern):
            mean = columns.value("val_accuracy", figures_of(chosen[row.id])).mean
            if mean is not None and (best is None or mean > best[0]):
                best = (mean, row)
    return None if best is None else best[1]


def smallest(table: Table, section: str, chosen: Chosen) -> list[str]:
    """A sentence for each entry of `smallest` in this section: of the rows whose mean of `column` reaches `limit`, the one
    with the smallest mean of the column `least`."""
    rows = [row for row in table.rows if row.section == section and row.id in chosen]
    sentences = []
    for entry in table.smallest:
        if entry["section"] != section or not rows:
            continue
        column = columns.column(entry["column"])
        head = f"{entry['what']} ({column.head} {column.sign} {entry['limit']:g}): "
        least = _least(rows, entry, chosen)
        if least is None:
            sentences.append(f"{head}none of these rows.")
        else:
            row, reached, size = least
            unit = columns.column(entry["least"]).head
            sentences.append(f"{head}{row.label}, {size} {unit}, {reached}, n = {len(reached.values)}.")
    return sentences


def _least(rows: Sequence[Row], entry: Plain, chosen: Chosen) -> tuple[Row, Value, Value] | None:
    """The row, what it reaches and its size; None where no row is good enough."""
    good = []
    for row in rows:
        figures = figures_of(chosen[row.id])
        reached, size = columns.value(entry["column"], figures), columns.value(entry["least"], figures)
        if reached.mean is None or size.mean is None:
            continue
        if Goal(columns.column(entry["column"]), entry["limit"], reached.mean).met:
            good.append((size.mean, row, reached, size))
    return min(good, key=lambda each: each[0])[1:] if good else None
