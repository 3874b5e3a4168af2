"""How many units of a group stay in any case, whichever these are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from zerogate.structure import Group


def with_least(groups: Sequence[Group], at_least: Iterable[tuple[Tensor, int]]) -> list[Group]:
    """Groups that keep enough of each of these units, [n], of which so many must stay; −1 among them stays in any case."""
    groups = list(groups)
    for units, n in at_least:
        n -= int((units < 0).sum())
        present = units[units >= 0].unique()
        for i, group in enumerate(groups):
            inside = int(((group.slice.start <= present) & (present < group.slice.stop)).sum())
            needed = group.units - inside + min(inside, n)
            if inside and n > 0:
                groups[i] = replace(group, least=max(group.least, needed))
                n -= inside
    return groups
