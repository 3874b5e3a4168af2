"""The probability that a group is live, in plain ops that can be differentiated any number of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.cost.liveness import Liveness, liveness
from zerogate.cost.products import EntryProducts
from zerogate.cost.terms import AxisSizes
from zerogate.structure import Structure


def liveness_of(structure: Structure, sizes: AxisSizes) -> Liveness:
    """The tables of a network.

    A layer keeps what it reads live as long as one of its output channels is. A norm takes statistics over all its channels
    together: while one of them is live, the values of all must be right."""
    groups = len(structure.groups)
    on_axis: list[list[int]] = [[] for _ in structure.axes]
    for axis, group in sizes.per_channel[:-1].nonzero().tolist():
        on_axis[axis].append(group)
    number = {axis: i for i, axis in enumerate(structure.axes)}
    lasting = (sizes.always[:-1] > 0).tolist()
    normed = _groups_under_norms(structure)
    readers: list[list[int]] = [[] for _ in structure.groups]
    produced: list[list[int]] = []
    for c in structure.calls:
        if c.consumes not in number:
            continue
        for group in on_axis[number[c.consumes]]:
            readers[group].append(len(produced))
        if c.produces not in number or lasting[number[c.produces]]:
            produced.append([groups])
        else:
            produced.append(_with_normed(on_axis[number[c.produces]], normed))
    return liveness(groups, readers, produced)


def _groups_under_norms(structure: Structure) -> list[tuple[int, ...]]:
    """The groups that each norm takes statistics over, and the number after the last group where some channels of its input
    always stay."""
    distinct = {(norm.labels.data_ptr(), len(norm.labels)): norm.labels for norm in structure.norms}
    normed = []
    for units in distinct.values():
        groups = structure.group_of_unit[units[units >= 0]].unique().tolist()
        normed.append((*groups, len(structure.groups)) if (units < 0).any() else tuple(groups))
    return list(dict.fromkeys(normed))


def _with_normed(groups: list[int], normed: list[tuple[int, ...]]) -> list[int]:
    """These groups, and all that share a norm with one of them."""
    together = dict.fromkeys(groups)
    for under in normed:
        if together.keys() & set(under):
            together |= dict.fromkeys(under)
    return list(together)


@dataclass(frozen=True)
class LiveProbability:
    """The recursion of `Liveness` with probabilities, where gates are independent and so are the edges of a state."""

    rounds: int
    """See `Liveness.rounds`."""
    ends: Tensor
    """The probabilities 0 and 1."""
    closed: EntryProducts
    """Products of (q, 1, 0) with q = 1 − p: P(all units closed) of every group, of one that is always open, and of one that
    is always closed."""
    all_closed: EntryProducts
    """Products of these: for every state P(the groups of all its edges are closed)."""
    edge_groups: Tensor
    """The group of each edge, int64 [states, most edges]; filled up with edges of the group that is always closed."""
    edge_states: Tensor
    """The state that each edge leads to, [states, most edges]."""
    all_dead: EntryProducts
    """Products over the edges, one state after another: for every state P(all its edges are dead)."""
    paths: EntryProducts
    """Products over the states: for every group P(its whole path is live)."""

    @staticmethod
    def of(structure: Structure, tables: Liveness) -> LiveProbability:
        """The recursion of a network, for the tables that `liveness_of` gives of it."""
        groups, units, states = len(structure.groups), structure.units, len(tables.edges)
        width = max(2, max(map(len, tables.edges)))
        edges = [out + [(groups + 1, 0)] * (width - len(out)) for out in tables.edges]
        members = [range(g.slice.start, g.slice.stop) for g in structure.groups]
        return LiveProbability(
            tables.rounds,
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            EntryProducts.of([*members, [units + 1], []], units),
            EntryProducts.of([[group for group, _ in out] for out in edges], groups + 1),
            torch.tensor([[group for group, _ in out] for out in edges]),
            torch.tensor([[state for _, state in out] for out in edges]),
            EntryProducts.of([range(i * width, (i + 1) * width) for i in range(states)], 1),
            EntryProducts.of(tables.paths, 0),
        )

    def __call__(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """(P(live), Π(1−p)) of every group at open probabilities p [units] in float64: float64 [groups] each."""
        closed = self.closed(1 - torch.cat([p, self.ends]))
        state = 1 - self.all_closed(closed)
        after = closed[self.edge_groups] if self.rounds > 1 else closed
        for _ in range(self.rounds - 1):
            dead = torch.lerp(self.ends[1:], after, state[self.edge_states])
            state = 1 - self.all_dead(dead.view(-1))
        return self.paths(state), closed[: len(self.paths.entries)]
