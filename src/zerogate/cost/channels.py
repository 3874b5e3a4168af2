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

from zerogate.cost.closed_form import Priced, Tables, Weighed, tables
from zerogate.cost.liveness import listening
from zerogate.cost.poisson_binomial import count_distribution
from zerogate.cost.products import Products, padded
from zerogate.errors import ZerogateError
from zerogate.modules.internals import must_stay_traceable
from zerogate.structure import Axis, Structure


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs per example: ints where counted, 0-dim float64 tensors where expected."""

    params: Any
    macs: Any


class CostModel(ABC):
    """Cost as a function of how likely each unit is open."""

    units: int

    @functools.cached_property
    def dense(self) -> Cost:
        """Cost with every unit open."""
        return self.exact(torch.ones(self.units, dtype=torch.bool))

    def expected(self, p: Tensor) -> Cost:
        """Cost at open probabilities p [units]; where all are 0 or 1, the count of the compacted module."""
        p = p.double()
        return Cost(self.priced(p, "params"), self.priced(p, "macs"))

    def priced(self, p: Tensor, over: str, price: float = 1.0) -> Tensor:
        """price · expected "params" or "macs" at open probabilities p [units], a 0-dim tensor of p's type."""
        return (price * getattr(self.formula(p.double()), over)).to(p.dtype)

    @abstractmethod
    def formula(self, p: Tensor) -> Cost:
        """Expected cost in ops that can be differentiated as often as one likes, for p in float64."""

    def exact(self, is_open: Tensor) -> Cost:
        """Cost of what compaction gives for these open units, bool [units]."""
        cost = self.expected(is_open.detach().double())
        return Cost(round(cost.params.item()), round(cost.macs.item()))

    @abstractmethod
    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        """Units that stay physically, bool [units]."""


class ChannelCost(CostModel):
    """Cost where units are channels.

    Of a group with N open channels f(N) = min(size, ⌈max(N, m)/r⌉·r) stay, with m = `min_channels` and r = `round_to`: at
    least one even when all are closed (what it adds is constant, but not nothing). With open probabilities p_u it is
    expected to keep n = s·E[f(N)] + (1−s)·f(0) channels, where s is the probability that somebody still listens: that not
    every layer which consumes the group has lost all its outputs. For m = r = 1, E[f(N)] = Σp + Π(1−p).
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
        self, structure: Structure, shapes: dict[str, torch.Size], min_channels: int = 1, round_to: int = 1
    ) -> None:
        for option, value in (("min_channels", min_channels), ("round_to", round_to)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ZerogateError(
                    f"{option} is a whole number of channels, at least 1, got {value!r}; leave it out for 1"
                )
        self.structure, self.units = structure, structure.units
        groups = len(structure.groups)
        self._rows = {axis: i for i, axis in enumerate(structure.axes)}
        group_of_unit = structure.group_of_unit
        sizes = torch.tensor([g.units for g in structure.groups], dtype=torch.float64)
        lengths, number, units = structure.in_line
        total = len(lengths)
        fixed = torch.zeros(total, dtype=torch.float64).index_add_(0, number, (units < 0).double())
        number, on = number[units >= 0], group_of_unit[units[units >= 0]]
        held = torch.zeros(total * groups, dtype=torch.float64)
        held = held.index_add_(0, number * groups + on, torch.ones(len(on), dtype=torch.float64)).view(total, groups)
        self._groups_on: dict[Axis, list[int]] = {axis: [] for axis in structure.axes}
        by_row = list(self._groups_on.values())
        for row, group in held.nonzero().tolist():
            by_row[row].append(group)
        held /= sizes  # how often each unit of the group occurs

        terms: Multiset[tuple[tuple[int, ...], str]] = Multiset()
        for name, shape in shapes.items():
            rows = [self._rows.get((name, d)) for d in range(len(shape))]
            rest = functools.reduce(operator.mul, (n for n, row in zip(shape, rows, strict=True) if row is None), 1)
            terms[tuple(row for row in rows if row is not None), "params"] += rest
        for c in structure.calls:
            coefficient, factors = c.macs, []
            for place in (c.consumes, c.produces, c.repeats):
                if place in self._rows:
                    factors.append(self._rows[place])
                elif place is not None:
                    coefficient *= shapes[place[0]][place[1]]
            terms[tuple(factors), "macs"] += coefficient  # type: ignore[assignment]
        keys = list(dict.fromkeys(rows for rows, _ in terms))
        absent = len(self._rows)  # an extra row that always counts 1
        self._sizes = Products([list(k) for k in keys], absent)
        self._tensors = {
            "held": torch.cat([held, held.new_zeros(1, groups)]),
            "fixed": torch.cat([fixed, fixed.new_ones(1)]),
            "weights": torch.tensor(
                [[terms[k, what] for k in keys] for what in ("params", "macs")], dtype=torch.float64
            ),
            "ends": torch.tensor([0.0, 1.0], dtype=torch.float64),
            "group": group_of_unit,
            "size": sizes,
            "least": torch.tensor([min_channels if g.kind == "channel" else 1 for g in structure.groups]).double(),
            "step": torch.tensor([round_to if g.kind == "channel" else 1 for g in structure.groups]).double(),
        }
        self._partly = set(fixed.nonzero().flatten().tolist())
        self._follow_listeners()
        self._tensors |= self._widened()
        self._by_device: dict[torch.device, dict[str, Tensor]] = {torch.device("cpu"): self._tensors}
        self._keys = keys
        self._closed_form: dict[torch.device, Tables] = {}

    def _follow_listeners(self) -> None:
        """Which layers consume each group and which groups each layer makes, and what follows for who is heard."""
        groups, units = len(self.structure.groups), self.structure.units
        group_of_unit = self.structure.group_of_unit
        distinct = {(n.labels.data_ptr(), len(n.labels)): n.labels for n in self.structure.norms}
        under = []
        for normed in distinct.values():
            on = group_of_unit[normed[normed >= 0]].unique().tolist()
            under.append((*on, groups) if (normed < 0).any() else tuple(on))  # groups: never dies
        self._under_norms = list(dict.fromkeys(under))
        made: list[list[int]] = []
        consumers: list[list[int]] = [[] for _ in self.structure.groups]
        for c in self.structure.calls:
            if c.consumes in self._groups_on:
                for g in self._groups_on[c.consumes]:
                    consumers[g].append(len(made))
                row = None if c.produces is None else self._rows.get(c.produces)
                lasting = row is None or row in self._partly
                made.append([groups] if lasting else self._heard_through_norms(self._groups_on[c.produces]))  # type: ignore[index]
        heard = listening(groups, consumers, made)
        self._listening, self._rounds = heard, heard.rounds
        states, width = len(heard.edges), max(2, max(len(e) for e in heard.edges))
        # groups and what stands in for them: one that is always open, and one that is closed and so changes no product
        members = [list(range(g.slice.start, g.slice.stop)) for g in self.structure.groups]
        self._closed = Products([*members, [units + 1], []], units)
        edges = [[(groups if g < 0 else g, to) for g, to in out] for out in heard.edges]
        edges = [out + [(groups + 1, 0)] * (width - len(out)) for out in edges]
        self._dead = Products([[g for g, _ in out] for out in edges], groups + 1)
        self._through = Products([list(range(i * width, (i + 1) * width)) for i in range(states)], 1)
        self._paths = Products(heard.paths, 0)
        self._tensors["next_group"] = torch.tensor([[g for g, _ in out] for out in edges])
        self._tensors["next_state"] = torch.tensor([[to for _, to in out] for out in edges])

    def _heard_through_norms(self, made: list[int]) -> list[int]:
        """These groups and all that a norm takes statistics over together with one of them: while any of them is heard,
        the values of all must be right."""
        heard = dict.fromkeys(made)
        for on in self._under_norms:
            if heard.keys() & set(on):
                heard |= dict.fromkeys(on)
        return list(heard)

    def _widened(self) -> dict[str, Tensor]:
        """Groups that do not keep max(1, N) channels, and the f(N) − N that E[f(N)] = Σp + E[f(N) − N] needs of them."""
        size, groups = self._tensors["size"], self.structure.groups
        n = torch.arange(max((g.units for g in groups), default=0) + 1, dtype=torch.float64)[:, None]
        added = torch.where(n <= size, self._width(n, self._tensors) - n, 0.0)  # [n, groups]
        widened = (added != (n == 0)).any(0).nonzero().flatten()
        self._wide: list[int] = widened.tolist()
        units = [list(range(groups[g].slice.start, groups[g].slice.stop)) for g in self._wide]
        members = padded(units, self.structure.units)
        return {
            "widened": widened,
            "widened_members": members,
            "added": added[: members.shape[1] + 1, widened].T.contiguous(),
            "unheard": added[0],
        }

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._by_device:
            self._by_device[device] = {k: t.to(device) for k, t in self._tensors.items()}
        return self._by_device[device]

    def _listened(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """(s, Π(1−p)) of every group, float64 [groups] each."""
        t = self._on(p.device)
        closed = self._closed(1 - torch.cat([p, t["ends"]]))
        state = 1 - self._dead(closed)
        after = closed[t["next_group"]] if self._rounds > 1 else closed
        for _ in range(self._rounds - 1):
            dead = torch.lerp(t["ends"][1:], after, state[t["next_state"]])
            state = 1 - self._through(dead.view(-1))
        return self._paths(state), closed[: len(self.structure.groups)]

    def _width(self, n: Tensor, t: dict[str, Tensor]) -> Tensor:
        """f(n): how many channels stay of groups with n open ones that somebody listens to, float64 [..., groups]."""
        return torch.minimum((torch.maximum(n, t["least"]) / t["step"]).ceil() * t["step"], t["size"])

    def _cost(self, n: Tensor, t: dict[str, Tensor]) -> Cost:
        """Cost where groups keep n channels, float64 [groups]."""
        size = self._sizes(torch.addmv(t["fixed"], t["held"], n))
        params, macs = (t["weights"] @ size).unbind()
        return Cost(params, macs)

    def priced(self, p: Tensor, over: str, price: float = 1.0) -> Tensor:
        if must_stay_traceable() or p.is_meta or max(map(len, self._keys)) > 2:
            return super().priced(p, over, price)
        if p.device not in self._closed_form:
            with torch.inference_mode(False):
                self._closed_form[p.device] = self._tables().on(p.device)
        added = self._added(p.double()) if self._wide else None
        plain = functools.partial(super().priced, over=over, price=price)
        found: Tensor = Priced.apply(self._closed_form[p.device], over, price, p, added, plain)
        return found

    def _tables(self) -> Tables:
        """What the cost is in closed form, where no term has more than two factors."""
        t = self._tensors
        sizes = torch.cat([t["held"], t["fixed"][:, None]], 1)  # as linear functions of n and 1
        absent = len(self._rows)
        left, right = sizes[padded([*map(list, self._keys), [absent, absent]], absent)[:-1]].unbind(1)
        costs = {over: left.T @ (w[:, None] * right) for over, w in zip(("params", "macs"), t["weights"], strict=True)}
        return tables(
            [range(g.slice.start, g.slice.stop) for g in self.structure.groups],
            self._wide,
            torch.cat([t["unheard"], t["ends"][1:]]),
            self._listening,
            {over: (m + m.T) / 2 for over, m in costs.items()},
        )

    def _added(self, p: Tensor) -> Tensor:
        """E[f(N) − N] of the groups that are widened, elsewhere 0, float64 [groups + 1]."""
        t = self._on(p.device)
        members = torch.cat([p, p.new_zeros(1)])[t["widened_members"]]
        added = (count_distribution(members) * t["added"]).sum(1)
        return p.new_zeros(len(t["size"]) + 1).index_copy(0, t["widened"], added)

    def formula(self, p: Tensor) -> Cost:
        t = self._on(p.device)
        s, closed = self._listened(p)
        total = torch.zeros_like(s).index_add(0, t["group"], p)
        added, unheard = closed, 1 - s
        if self._wide:
            added = closed.index_fill(0, t["widened"], 0.0) + self._added(p)[:-1]
            unheard = unheard * t["unheard"]
        return self._cost(s * (total + added) + unheard, t)

    def exact(self, is_open: Tensor) -> Cost:
        _, _, n = self._heard(is_open)
        cost = self._cost(n, self._on(n.device))  # whole numbers all the way
        return Cost(round(cost.params.item()), round(cost.macs.item()))

    def _heard(self, is_open: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Open units somebody listens to, bool [units]; how many each group has of them, and keeps, float64 [groups]."""
        t = self._on(is_open.device)
        s, _ = self._listened(is_open.double())
        heard = is_open & (s > 0.5)[t["group"]]
        n = torch.zeros_like(s).index_add(0, t["group"], heard.double())
        return heard, n, self._width(n, t)

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        """Open units somebody listens to and, where a group must keep more than it has of them, others by highest logit."""
        kept, n, width = self._heard(is_open)
        for group, missing in zip(self.structure.groups, (width - n).long().tolist(), strict=True):
            if missing:
                best = logits[group.slice].argsort(descending=True, stable=True)
                best = best[~kept[group.slice][best]]
                kept[group.slice.start + best[:missing]] = True
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
            total = c.macs * numel(c.consumes) * numel(c.produces) * numel(c.repeats)
            if c.weight in macs:
                macs[c.weight] += total / shapes[c.weight].numel()
            else:
                self._fixed_macs += total
        self._fixed_params = sum(s.numel() for name, s in shapes.items() if name not in slices)
        self._sizes = [s.stop - s.start for s in slices.values()]
        self.units = sum(self._sizes)
        self._macs = list(macs.values())
        self._weights: dict[tuple[str, float, torch.device], Tensor] = {}

    def priced(self, p: Tensor, over: str, price: float = 1.0) -> Tensor:
        if (
            must_stay_traceable() or p.is_meta or not self._sizes or p.dtype == torch.float64
        ):  # the ops themselves are exact
            return super().priced(p, over, price)
        key = over, price, p.device
        if key not in self._weights:
            each = [1.0] * len(self._sizes) if over == "params" else self._macs
            with torch.inference_mode(False):
                weights = torch.tensor([price * x for x in each], dtype=torch.float64, device=p.device)
            self._weights = {key: weights}
        fixed = self._fixed_params if over == "params" else self._fixed_macs
        found: Tensor = Weighed.apply(p, self._sizes, self._weights[key], price * fixed)
        return found

    def formula(self, p: Tensor) -> Cost:
        parts = p.split(self._sizes) if self._sizes else ()
        sums = torch.stack([p.new_zeros(()), *(part.sum() for part in parts)])[1:]
        return Cost(sums.sum() + self._fixed_params, sums @ sums.new_tensor(self._macs) + self._fixed_macs)

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        return is_open
