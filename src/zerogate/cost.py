"""Parameters and multiply-accumulates: one path for what is expected and for what is deployed.

MACs are those of convolutions and linear layers, for one example (bias additions, normalisation and activations are not
counted); parameters are all entries of `model.parameters()`, each once.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections import Counter as Multiset
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zerogate.groups import Axis, Structure


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs per example: ints where counted, 0-dim float64 tensors where expected."""

    params: Any
    macs: Any


class _Product(torch.autograd.Function):
    """Product over the last dimension whose gradient is exact at zeros and never waits for the device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.prod(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        one = torch.ones_like(x[..., :1])
        before = torch.cat([one, x[..., :-1]], -1).cumprod(-1)
        after = torch.cat([one, x.flip(-1)[..., :-1]], -1).cumprod(-1).flip(-1)
        return grad[..., None] * before * after


class CostModel(ABC):
    """Cost as a function of how likely each unit is open."""

    dense: Cost

    @abstractmethod
    def expected(self, p: Tensor) -> Cost:
        """Cost at open probabilities p [units]; where all are 0 or 1, the count of the compacted module."""

    def exact(self, is_open: Tensor) -> Cost:
        """Cost of what compaction gives for these open units, bool [units]."""
        cost = self.expected(is_open.detach().double())
        return Cost(round(cost.params.item()), round(cost.macs.item()))

    @abstractmethod
    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        """Units that stay physically, bool [units]."""


class ChannelCost(CostModel):
    """Cost where units are channels.

    A group of channels with open probabilities p_u is expected to keep n = s·Σp + s·Π(1−p) + (1−s) channels: E[max(1, N)],
    since one channel of a group stays even when all are closed (what it adds is constant, but not nothing). Here s is the
    probability that somebody still listens: that not every layer which consumes the group has lost all its outputs.
    A tensor then has Π (sizes of its dimensions) parameters and a layer macs·n_in·n_out MACs. Gates are independent, so
    the formula is an expectation up to the correlation of groups that meet themselves.

    Args:
        structure: units and the axes they occupy.
        shapes: shape of every parameter, by name, each parameter once.
    """

    def __init__(self, structure: Structure, shapes: dict[str, torch.Size]) -> None:
        self.structure = structure
        groups = len(structure.groups)
        self._rows = {axis: i for i, axis in enumerate(structure.axes)}
        held = torch.zeros(len(self._rows), groups, dtype=torch.float64)
        fixed = torch.zeros(len(self._rows), dtype=torch.float64)
        self._groups_on: dict[Axis, list[int]] = {}
        group_of_unit = structure.group_of_unit
        sizes = torch.tensor([g.units for g in structure.groups], dtype=torch.float64)
        for axis, units in structure.axes.items():
            row = self._rows[axis]
            fixed[row] = (units < 0).sum()
            found = group_of_unit[units[units >= 0]]
            held[row].index_add_(0, found, torch.ones(len(found), dtype=torch.float64))
            self._groups_on[axis] = found.unique().tolist()
        held /= sizes  # how often each unit of the group occurs

        terms: Multiset[tuple[tuple[int, ...], str]] = Multiset()
        for name, shape in shapes.items():
            rows = [self._rows.get((name, d)) for d in range(len(shape))]
            rest = functools.reduce(operator.mul, (n for n, row in zip(shape, rows, strict=True) if row is None), 1)
            terms[tuple(row for row in rows if row is not None), "params"] += rest
        for c in structure.calls:
            coefficient, factors = c.macs, []
            for place in (c.consumes, c.produces):
                if place in self._rows:
                    factors.append(self._rows[place])
                elif place is not None:
                    coefficient *= shapes[place[0]][place[1]]
            terms[tuple(factors), "macs"] += coefficient  # type: ignore[assignment]
        keys = list(dict.fromkeys(rows for rows, _ in terms))
        width = max((len(k) for k in keys), default=0)
        absent = len(self._rows)  # an extra row that always counts 1
        factors_of = [[*k, *[absent] * (width - len(k))] for k in keys]
        self._tensors = {
            "held": held,
            "fixed": fixed,
            "factors": torch.tensor(factors_of, dtype=torch.int64).view(len(keys), width),
            "weights": torch.tensor(
                [[terms[k, what] for k in keys] for what in ("params", "macs")], dtype=torch.float64
            ),
            "members": _padded([list(range(g.slice.start, g.slice.stop)) for g in structure.groups], structure.units),
            "group": group_of_unit,
            **self._listeners(),
        }
        self._depth = self._longest_chain()
        self._by_device: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self._tensors}
        self.dense = self.exact(torch.ones(structure.units, dtype=torch.bool))

    def _listeners(self) -> dict[str, Tensor]:
        """Which layers consume each group and which groups each layer makes, as padded index lists."""
        groups = len(self.structure.groups)
        made: list[list[int]] = []
        consumers: list[list[int]] = [[] for _ in self.structure.groups]
        for c in self.structure.calls:
            if c.consumes in self._groups_on:
                for g in self._groups_on[c.consumes]:
                    consumers[g].append(len(made))
                units = None if c.produces is None else self.structure.axes.get(c.produces)
                lasting = c.produces is None or units is None or bool((units < 0).any())
                made.append([groups + 1] if lasting else self._groups_on[c.produces])  # type: ignore[index]
        self._made, self._consumers = made, consumers
        # index `groups` is padding (dead with certainty: neutral in a product), `groups + 1` a layer that never dies
        return {"makes": _padded(made, groups), "consumers": _padded(consumers, len(made))}

    def _longest_chain(self) -> int:
        """Rounds after which the death of layers has travelled as far as it can."""
        level = [0] * len(self.structure.groups)
        for _ in level:  # at most: a network with a cycle (shared layers) never settles
            before = list(level)
            for g, layers in enumerate(self._consumers):
                below = [before[h] + 1 for layer in layers for h in self._made[layer] if h < len(level)]
                level[g] = max(below, default=0)
            if level == before:
                break
        return min(max(level, default=0) + 1, len(level))

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._by_device:
            self._by_device[device] = {k: t.to(device) for k, t in self._tensors.items()}
        return self._by_device[device]

    def _listened(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """(s, Π(1−p)) of every group, float64 [groups] each."""
        t = self._on(p.device)
        closed = _Product.apply(torch.cat([1 - p, p.new_ones(1)])[t["members"]])
        s, certain = torch.ones_like(closed), p.new_tensor([1.0, 0.0])
        for _ in range(self._depth):
            dead = 1 - s * (1 - closed)
            layer_dead = _Product.apply(torch.cat([dead, certain])[t["makes"]])
            s = 1 - _Product.apply(torch.cat([layer_dead, p.new_ones(1)])[t["consumers"]])
        return s, closed

    def expected(self, p: Tensor) -> Cost:
        p = p.double()
        t = self._on(p.device)
        s, closed = self._listened(p)
        total = torch.zeros_like(s).index_add(0, t["group"], p)
        n = s * (total + closed) + (1 - s)
        counts = torch.cat([t["held"] @ n + t["fixed"], p.new_ones(1)])
        size = functools.reduce(operator.mul, counts[t["factors"]].unbind(1), p.new_ones(len(t["factors"])))
        params, macs = (t["weights"] @ size).unbind()
        return Cost(params, macs)

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        """Open units somebody listens to, and of a group that has none the one with the highest logit."""
        s, _ = self._listened(is_open.double())
        kept = is_open & (s > 0.5)[self._on(is_open.device)["group"]]
        for group in self.structure.groups:
            if not kept[group.slice].any():
                kept[group.slice.start + int(logits[group.slice].argmax())] = True
        return kept


class WeightCost(CostModel):
    """Cost where units are single weights: open weights plus every parameter that has no gate.

    Args:
        slices: which units gate each weight tensor, by the tensor's name.
        shapes: shape of every parameter, by name, each parameter once.
    """

    def __init__(self, structure: Structure, slices: dict[str, slice], shapes: dict[str, torch.Size]) -> None:
        def numel(axis: Axis | None) -> int:
            return 1 if axis is None else shapes[axis[0]][axis[1]]

        macs: dict[str, float] = dict.fromkeys(slices, 0.0)
        self._fixed_macs = 0.0
        for c in structure.calls:
            total = c.macs * numel(c.consumes) * numel(c.produces)
            if c.weight in macs:
                macs[c.weight] += total / shapes[c.weight].numel()
            else:
                self._fixed_macs += total
        self._fixed_params = sum(s.numel() for name, s in shapes.items() if name not in slices)
        self._sizes = [s.stop - s.start for s in slices.values()]
        self._macs = list(macs.values())
        units = sum(self._sizes)
        self.dense = self.exact(torch.ones(units, dtype=torch.bool))

    def expected(self, p: Tensor) -> Cost:
        sums = torch.stack([part.sum(dtype=torch.float64) for part in p.split(self._sizes)])
        return Cost(sums.sum() + self._fixed_params, sums @ sums.new_tensor(self._macs) + self._fixed_macs)

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        return is_open


def _padded(lists: list[list[int]], fill: int) -> Tensor:
    """Index lists as one int64 matrix [lists, longest], short ones filled up."""
    width = max((len(x) for x in lists), default=0)
    rows = [[*x, *[fill] * (width - len(x))] for x in lists]
    return torch.tensor(rows, dtype=torch.int64).view(len(lists), width)
