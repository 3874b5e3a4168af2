"""Widths of trial runs: no two that a forward could take for each other are left the same.

A size that belongs to another tensor is right by chance where both keep equally many places, or where one follows from the
other by a whole factor: ``c // heads`` of a width c. So what each group keeps is chosen with an eye to all dimensions that a
module's code can see: of any two, of the same full size or of multiples, some run that passes tells them apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from zerogate.groups.limits import WIDTHS_TRIED
from zerogate.groups.trial.scopes import Scopes
from zerogate.modules.index import join_name
from zerogate.structure import Group, Structure

_NEAR = 32
"""Numbers of units among which groups alike choose."""


class Widths:
    """What trial runs of one structure keep.

    Args:
        structure: the units.
        scopes: which dimensions are seen together.
        multiple: of groups of channels, multiples of it are kept.
    """

    def __init__(self, structure: Structure, scopes: Scopes, multiple: int = 1) -> None:
        self._structure, self._scopes, self._multiple = structure, scopes, multiple
        self._places = [_places_of_a_unit(structure, group) for group in structure.groups]
        self._sizes = torch.empty(0, dtype=torch.int64)
        """Full size of each class of dimensions that keep the same places."""
        self._units, self._class = self._sizes, self._sizes
        """Unit at each place of each class, and the number of the class."""
        self._pairs = torch.empty(2, 0, dtype=torch.int64)
        """Classes of which no run has told one from the other yet; the second is the larger, ``_factor`` times."""
        self._factor = self._sizes
        self._seen = torch.empty(3, 0, 0)
        """Which classes each scope sees in its own code, around it, and beyond: 1 where it does, [3, scopes, classes]."""
        self._per_unit, self._constant = torch.empty(0, 0), torch.empty(0)
        """How many places of a class a unit of each group takes, float [classes, groups], and how many always stay."""
        scopes.add_attributes()
        if scopes and structure.units:
            self._find_pairs(*scopes.dimensions(structure))

    @property
    def undecided(self) -> bool:
        """Whether there are two widths that could still be mistaken for each other."""
        return self._pairs.numel() > 0

    def settle(self, kept: Tensor) -> None:
        """Notes that a run with these units, bool [units], has passed."""
        if self._scopes.add_attributes():
            self._find_pairs(*self._scopes.dimensions(self._structure))
        alike = self._mistakable(kept)
        self._pairs, self._factor = self._pairs[:, alike], self._factor[alike]
        if self.undecided:
            in_use = self._seen_together(torch.tensor(self._scopes.in_use(self._structure)))
            self._pairs, self._factor = self._pairs[:, in_use], self._factor[in_use]

    def draw(self, generator: torch.Generator, again: bool = False) -> Tensor:
        """A random non-empty subset of every group that can shrink, bool [units].

        ``again``: after a run that passed; groups may stay whole then.
        """
        counts = self._counts()
        if self.undecided:
            counts = self._told_apart(counts, generator, again)
        kept = torch.ones(self._structure.units, dtype=torch.bool)
        for group, count in zip(self._structure.groups, counts, strict=True):
            if count < group.units:
                kept[group.slice] = False
                kept[group.slice.start + torch.randperm(group.units, generator=generator)[:count]] = True
        return kept

    def _told_apart(self, counts: list[int], generator: torch.Generator, again: bool) -> list[int]:
        """How many units each group keeps, so that as few pairs as possible could be mistaken for each other: one group
        after the other takes what is best beside the rest."""
        groups = self._structure.groups
        now = torch.tensor(counts)
        for _ in range(WIDTHS_TRIED):
            widths = self._per_unit @ now.float() + self._constant
            bad = self._are_alike(widths[self._pairs])
            if not bad.any():
                break
            pair = self._pairs[:, bad][:, _below(int(bad.sum()), generator)]
            inside = (self._per_unit[pair[_below(2, generator)]] > 0).nonzero().flatten().tolist()
            chosen = inside[_below(len(inside), generator)]
            choice = self._choice(groups[chosen])
            if not choice:
                continue
            spread = -(-len(choice) // _NEAR)
            options = [*choice[_below(spread, generator) :: spread], *[groups[chosen].units] * again]
            steps = self._per_unit[:, chosen, None] * (torch.tensor(options) - now[chosen])
            left = self._are_alike((widths[:, None] + steps)[self._pairs]).sum(0).tolist()
            best = [n for n, bad_with in zip(options, left, strict=True) if bad_with == min(left)]
            now[chosen] = best[_below(len(best), generator)]
        return [int(n) for n in now]

    def _choice(self, group: Group) -> Sequence[int]:
        """How many units a group may keep, fewer than all."""
        n = group.units
        if group.slice.start in self._structure.inputs:  # selecting inputs is an op more
            return ()
        if self._multiple > 1 and group.kind == "channel":
            return range(-(-group.least // self._multiple) * self._multiple, n, self._multiple)
        # a width of one is broadcast where it does not belong
        return range(max(group.least, 1 if n < 4 else 2), n)

    def _counts(self) -> list[int]:
        """How many units each group keeps at first.

        The wider, the smaller the share, so that no quotient of two widths is rounded to what it was; of groups of one width
        no two keep as many places, and the number is odd where it can be: a forward that halves a width shows then.
        """
        groups = self._structure.groups
        kinds = [(group.units * places, group.units) for group, places in zip(groups, self._places, strict=True)]
        distinct = sorted(set(kinds), reverse=True)
        share = {kind: 0.4 + 0.3 * i / (len(distinct) - 1) if i else 0.4 for i, kind in enumerate(distinct)}
        taken: dict[int, set[int]] = defaultdict(set)
        orders: dict[tuple[int, int, str, int], list[int]] = {}
        counts = []
        for group, kind, places in zip(groups, kinds, self._places, strict=True):
            if choice := self._choice(group):
                key = *kind, group.kind, group.least
                if key not in orders:
                    orders[key] = _in_order(choice, share[kind] * group.units)
                used, order = taken[kind[0]], orders[key]
                count = next((n for n in order if n * places not in used), order[len(used) % len(order)])
                used.add(count * places)
                counts.append(count)
            else:
                counts.append(group.units)
        return counts

    def _mistakable(self, kept: Tensor) -> Tensor:
        """Which pairs could be mistaken for each other where these units are kept, bool [pairs]."""
        present = torch.cat([kept, torch.ones(1, dtype=torch.bool)])[self._units]  # unit −1 is the last
        widths = torch.zeros_like(self._sizes).index_add_(0, self._class, present.long())
        return self._are_alike(widths[self._pairs])

    def _are_alike(self, widths: Tensor) -> Tensor:
        """Of which pairs one could be mistaken for the other, bool [pairs, …], given their widths [2, pairs, …]."""
        one, other = widths
        factor = self._factor.reshape(-1, *[1] * (one.ndim - 1))
        excess = other - factor * one
        # a // factor, or a // b, of which the quotient is the factor again
        rounded = torch.where(factor > 1, torch.maximum(factor, one), 1)
        return (excess >= 0) & (excess < rounded)

    def _find_pairs(self, units: Tensor, number: Tensor, seen: Tensor) -> None:
        """Finds classes of dimensions, and which of them can be seen together."""
        random = torch.randint(-(2**62), 2**62, (self._structure.units + 1,), generator=_seeded())
        dims = int(number[-1]) + 1 if len(number) else 0
        signature = torch.zeros(dims, dtype=torch.int64).index_add_(0, number, random[units])
        signature, of_dim = signature.unique(return_inverse=True)
        first = torch.zeros(len(signature), dtype=torch.int64).scatter_(0, of_dim, torch.arange(dims))
        inside = torch.zeros(dims, dtype=torch.bool).index_fill_(0, first, True)[number]
        self._units, self._class = units[inside], of_dim[number[inside]]
        self._sizes = torch.bincount(self._class, minlength=len(signature))
        self._count_places()
        varies = torch.zeros(len(signature), dtype=torch.bool).index_fill_(0, self._class[self._units >= 0], True)
        self._seen = torch.zeros(3, int(seen[0].amax()) + 1, len(signature))
        self._seen[seen[2], seen[0], of_dim[seen[1]]] = 1
        together = (self._seen.amax(0).T @ self._seen[0] > 0) & varies & varies[:, None]
        one, other = (together | together.T).nonzero().T
        n, m = self._sizes[one], self._sizes[other]
        factor = m // n
        related = (m % n == 0) & ((n < m) | (one < other)) & (signature[one] * factor != signature[other])
        self._pairs, self._factor = torch.stack([one[related], other[related]]), factor[related]
        together = self._seen_together(torch.ones(self._seen.shape[1], dtype=torch.bool))
        self._pairs, self._factor = self._pairs[:, together], self._factor[together]

    def _seen_together(self, scopes: Tensor) -> Tensor:
        """Which pairs lie in one of these scopes, bool [scopes], and one of the two in its own code; of a width and a
        multiple of it, the other must be at hand, too, since the factor is written there."""
        if not scopes.any():
            return torch.zeros(self._pairs.shape[1], dtype=torch.bool)
        own, nearby, anywhere = self._seen[:, scopes].cumsum(0).clamp(max=1)[:, :, self._pairs].unbind(0)
        far, near = ((own * other.flip(1)).amax((0, 1)) > 0 for other in (anywhere, nearby))
        return torch.where(self._factor == 1, far, near)

    def _count_places(self) -> None:
        """Notes how the widths of classes follow from the units that groups keep."""
        groups = self._structure.groups
        held = self._units >= 0
        group, of_class = self._structure.group_of_unit[self._units[held]], self._class[held]
        places = torch.bincount(of_class * len(groups) + group, minlength=len(self._sizes) * len(groups)).float()
        self._per_unit = places.view(-1, len(groups)) / torch.tensor([g.units for g in groups])
        self._constant = torch.bincount(self._class[~held], minlength=len(self._sizes)).float()


def _places_of_a_unit(structure: Structure, group: Group) -> int:
    """How many places a unit takes along a dimension of a layer that makes it."""
    for name in group.producers:
        for dim in (0, 1):
            units = structure.axes.get((join_name(name, "weight"), dim))
            if units is not None and len(units) > group.units:
                own = int(((units >= group.slice.start) & (units < group.slice.stop)).sum())
                if own:
                    return max(1, own // group.units)
            elif units is not None and dim == 0 and len(units) == group.units:
                return 1
    return 1


def _in_order(choice: Sequence[int], wanted: float) -> list[int]:
    """Some of the numbers to choose from: odd ones before even ones, and those near what is wanted first."""
    step = choice[1] - choice[0] if len(choice) > 1 else 1
    start = max(0, min(round((wanted - choice[0]) / step) - _NEAR // 2, len(choice) - _NEAR))
    return sorted(choice[start : start + _NEAR], key=lambda n: (n % 2 == 0, abs(n - wanted)))


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
