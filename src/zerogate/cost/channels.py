"""What a network costs where units are channels or heads: one formula for what is expected and for what is deployed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.checks import check_whole
from zerogate.cost.closed_form import Tables, WeightedCost, make_tables
from zerogate.cost.index_tables import on_device
from zerogate.cost.live_probability import LiveProbability, liveness_of
from zerogate.cost.model import Cost, CostModel, Counted, Expected
from zerogate.cost.terms import AxisSizes, Terms
from zerogate.cost.widths import Widths
from zerogate.modules.device_tables import DeviceTables
from zerogate.modules.internals import must_stay_traceable
from zerogate.structure import Structure


@dataclass(frozen=True)
class _Parts:
    """What a cost is computed from, on one device."""

    group_of_unit: Tensor
    """int64 [units]."""
    live: LiveProbability
    """From open probabilities to those that groups are live."""
    widths: Widths
    """From the open channels of groups to how many they keep."""
    sizes: AxisSizes
    """From there to the sizes of axes."""
    terms: Terms
    """From there to parameters and MACs."""


@dataclass(frozen=True)
class _Reading:
    """Which open units are read, and what follows."""

    units: Tensor
    """Units that are open and whose group is live, bool [units]."""
    n: Tensor
    """How many of them each group has, float64 [groups]."""
    width: Tensor
    """How many channels it keeps, float64 [groups]."""


class ChannelCost(CostModel):
    """Cost where units are channels, or heads, or both.

    Of a group with N open channels f(N) = min(size, ⌈max(N, m)/r⌉·r) stay, with m = `min_channels` and r = `round_to`: at
    least one even when all are closed (what it adds is constant, but not nothing). With open probabilities p_u it is
    expected to keep n = s·E[f(N)] + (1−s)·f(0) channels, where s is the probability that the group is live: that not every
    layer which reads it has lost all its outputs. For m = r = 1, E[f(N)] = Σp + Π(1−p).
    A tensor then has Π (sizes of its dimensions) parameters and a layer macs·n_in·n_out MACs. Gates are independent, so
    the formula is an expectation up to the correlation of groups that meet themselves.

    Args:
        structure: units and the axes they occupy.
        shapes: shape of every parameter, by name, each parameter once.
        min_channels: a group of channels keeps at least so many, or all it has. Heads keep at least one.
        round_to: the number that a group of channels keeps is rounded up to a multiple of this, or to all it has. A layer
            whose channels belong to several groups has each of them rounded. Heads are not rounded.

    Raises:
        ZerogateError: `min_channels` or `round_to` is not a whole number of at least 1.
    """

    def __init__(
        self, structure: Structure, shapes: Mapping[str, torch.Size], min_channels: int = 1, round_to: int = 1
    ) -> None:
        check_whole("min_channels", min_channels, way_out="leave it out for 1")
        check_whole("round_to", round_to, way_out="leave it out for 1")
        self.structure, self.units = structure, structure.units
        sizes = AxisSizes.of(structure)
        self._liveness = liveness_of(structure, sizes)
        self._parts = _Parts(
            structure.group_of_unit,
            LiveProbability.of(structure, self._liveness),
            Widths.of(structure.groups, min_channels, round_to),
            sizes,
            Terms.of(structure, shapes),
        )
        self._by_device: DeviceTables[_Parts] = DeviceTables()
        self._closed_form: DeviceTables[Tables] = DeviceTables()

    def _on(self, device: torch.device) -> _Parts:
        """The parts on a device."""
        return self._by_device.get(device, lambda: on_device(self._parts, device))

    def weighted(self, p: Tensor, over: str, weight: float = 1.0) -> Tensor:
        if must_stay_traceable() or p.is_meta or not self._parts.terms.quadratic:
            return super().weighted(p, over, weight)
        tables = self._closed_form.get(p.device, lambda: on_device(self._tables(), p.device))
        widths = self._on(p.device).widths
        extra = widths.expected_addition(p.double()) if widths.wide else None
        plain = functools.partial(super().weighted, over=over, weight=weight)
        cost: Tensor = WeightedCost.apply(tables, over, weight, p, extra, plain)
        return cost

    def _tables(self) -> Tables:
        """The tables of the closed form, on the CPU."""
        widths = self._parts.widths
        return make_tables(
            [range(g.slice.start, g.slice.stop) for g in self.structure.groups],
            widths.wide,
            torch.cat([widths.at_none, widths.at_none.new_ones(1)]),
            self._liveness,
            self._parts.terms.quadratic_forms(self._parts.sizes),
        )

    def formula(self, p: Tensor) -> Expected:
        parts = self._on(p.device)
        widths = parts.widths
        live, closed = parts.live(p)
        total = torch.zeros_like(live).index_add(0, parts.group_of_unit, p)
        added, at_none = closed, 1 - live
        if widths.wide:
            added = closed.index_fill(0, widths.index, 0.0) + widths.expected_addition(p)[:-1]
            at_none = at_none * widths.at_none
        return parts.terms.cost(parts.sizes(live * (total + added) + at_none))

    def exact(self, is_open: Tensor) -> Counted:
        parts = self._on(is_open.device)
        cost = parts.terms.cost(parts.sizes(self._read(is_open).width))  # whole numbers all the way
        return Cost(round(cost.params.item()), round(cost.macs.item()))

    def _read(self, is_open: Tensor) -> _Reading:
        """Which of these open units, bool [units], are read."""
        parts = self._on(is_open.device)
        live, _ = parts.live(is_open.double())
        units = is_open & (live > 0.5)[parts.group_of_unit]
        n = torch.zeros_like(live).index_add(0, parts.group_of_unit, units.double())
        return _Reading(units, n, parts.widths(n))

    def in_use(self, is_open: Tensor) -> Tensor:
        return self._read(is_open).units

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        """Open units of live groups and, where a group must keep more than these, others of it by highest logit."""
        reading = self._read(is_open)
        kept = reading.units
        missing_in = (reading.width - reading.n).long().tolist()
        for group, missing in zip(self.structure.groups, missing_in, strict=True):
            if missing:
                best = logits[group.slice].argsort(descending=True, stable=True)
                best = best[~kept[group.slice][best]]
                kept[group.slice.start + best[:missing]] = True
        return kept
