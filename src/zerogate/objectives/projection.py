"""Making a network fit its budget: which gates change, and to what. All functions here return logits and change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zerogate.gates.gate import Gate
from zerogate.objectives.budget import Budget
from zerogate.structure import Group

MARGIN = 0.01
"""The deployed network ends at most this share of the dense count below its budget."""
_DOUBLINGS = 20
"""Of the step away from a logit in search of the threshold: 2²⁰ is further than any gate's threshold lies."""
_BISECTIONS = 40
"""From a step of 2²⁰ down to 1e-6: below the spacing of float32 there."""
_BEYOND = 1e-3
"""How far beyond the threshold a changed logit ends, relative to 1 + its size: far enough to survive rounding."""


@torch.no_grad()
def project(
    logits: Tensor, groups: Sequence[Group], gate: Gate, budget: Budget, margin: float = MARGIN
) -> tuple[Tensor, int]:
    """Logits whose deployed network fits, and how many gates changed.

    Where the network costs more than the budget, the open gates with the lowest logits close until it fits; where it is
    more than ``margin`` of the dense count below, the closed gates with the highest logits open until it is not, or the
    next would not fit. The best gate of each group changes last.
    """
    is_open = gate.mask(logits) > 0
    rank = is_open.to(torch.int8)
    rank[best_units(logits, groups)] *= 2
    order = logits.argsort(descending=True, stable=True)
    order = order[rank[order].argsort(descending=True, stable=True)]
    now = int(is_open.sum())
    number = fitting_number(order, now, budget, margin)
    changed = order[min(now, number) : max(now, number)]
    logits = logits.clone()
    logits[changed] = beyond_threshold(gate, logits[changed], opens=number > now)
    return logits, len(changed)


def fitting_number(order: Tensor, number: int, budget: Budget, margin: float = MARGIN) -> int:
    """How many units should be open for the network to fit: ``number`` if it does, else the fewest changes.

    Args:
        order: units by how open they are, the most open first, int64 [units].
        number: how many of them are open now.
        margin: the share of the dense count by which the network may end below the budget.
    """
    least = budget.limit - margin * budget.dense
    now = budget.left_of_first(order, number)
    if now > budget.limit:
        return budget.largest(order, 0, number)
    if now >= least:
        return number
    most = budget.largest(order, number)
    below = budget.largest(order, number, most, least)  # the next one is within the margin
    return min(below + 1, most)


@torch.no_grad()
def settle(logits: Tensor, groups: Sequence[Group], gate: Gate, budget: Budget) -> tuple[Tensor, int]:
    """Logits that can stand still from now on, and how many gates `project` changed.

    One unit of a group stays in any case, so where all are closed the best is opened. The network is made to fit. A
    hard-concrete gate that never decided is deployed as nearly 0; the weights are trained with it from now on, so it may
    as well count: logits of open gates are at least 0.
    """
    is_open = gate.mask(logits) > 0
    best = best_units(logits, groups)
    empty = best[[not bool(is_open[g.slice].any()) for g in groups]]
    logits = logits.clone()
    logits[empty] = beyond_threshold(gate, logits[empty], opens=True)
    logits, changed = project(logits, groups, gate, budget)
    return torch.where(gate.mask(logits) > 0, logits.clamp(min=0), logits), changed


def best_units(logits: Tensor, groups: Sequence[Group]) -> Tensor:
    """The unit of each group with the highest logit, int64 [groups]."""
    return torch.stack([g.slice.start + logits[g.slice].argmax() for g in groups])


def beyond_threshold(gate: Gate, logits: Tensor, opens: bool) -> Tensor:
    """For gates that are all closed (or all open), the nearest logits on the other side of the threshold, found by
    bisection; their order is kept. A hard-concrete gate multiplies by nearly 0 there, so that opening it changes next to
    nothing.

    Args:
        logits: in descending order.
        opens: whether the gates are to open, or to close.
    """
    sign = 1.0 if opens else -1.0

    def is_beyond(x: Tensor) -> Tensor:
        return (gate.mask(x) > 0) == opens

    near, step = logits.clone(), torch.ones_like(logits)
    far = near + sign * step
    for _ in range(_DOUBLINGS):
        step = torch.where(is_beyond(far), step, 2 * step)
        far = logits + sign * step
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        beyond = is_beyond(middle)
        near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
    place = torch.linspace(1.0, 0.0, len(logits), device=logits.device, dtype=logits.dtype)  # keeps their order
    return far + sign * _BEYOND * (1 + far.abs()) * (1 + (place if opens else 1 - place))
