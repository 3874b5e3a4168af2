"""Pointwise ops: channels that meet must live or die together, and a parameter that meets them is sliced with them."""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.groups.labels import constant, narrow_constant, squash, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import Freeze, Op, Out, rule


@rule(Family.POINTWISE)
def pointwise(op: Op) -> Out:
    if not isinstance(op.out, Tensor):
        raise Freeze(f"{op.name} has several outputs")
    shape, met = op.out.shape, None
    for x in op.tensors:
        found = op.labels(x)
        if found is None:
            continue
        found = found if found.shape == shape else found.expand(shape)
        if met is None:
            met = found
        elif met is not found:
            met, found = _several(op, met, found), _several(op, found, met)
            op.unite(met, found)
            met = squash(either(met, found))
    if met is None:
        return None
    for x in op.tensors:
        if op.labels(x) is None:
            meet(op, x, met)
    return met


def _several(op: Op, mine: Tensor, other: Tensor) -> Tensor:
    """Labels, or none where a single one meets many: a map of one channel by which all others are scaled stays, and does
    not tie them."""
    if varying_dims(mine) or not varying_dims(other) or not mine.any():
        return mine
    op.watcher.seen.labels.freeze(mine, op.watcher.where(f"{op.name} of a single channel with others"))
    return constant(mine.shape)


def meet(op: Op, x: Tensor, labels: Tensor) -> None:
    """Says that the parameters in x, broadcast to these labels, are sliced with them."""
    for view in op.views(x):
        op.watcher.attach_view(view, labels)
    op.watcher.meet_constant(x, labels)


def either(a: Tensor, b: Tensor) -> Tensor:
    """a where it is a label, else b; keeps dimensions along which neither varies expanded."""
    shape = a.shape
    a, b = narrow_constant(a, b)
    return torch.where(a != 0, a, b).expand(shape)


@rule("glu")
def _glu(op: Op) -> Out:
    """The channels at one place of both halves are tied, so that the halves stay equally long."""
    found = op.labels(op.bound["self"])
    assert found is not None
    dim = op.bound.get("dim", -1) % found.ndim
    a, b = found.chunk(2, dim)
    if dim not in varying_dims(found):
        return a
    op.unite(a, b)
    labels = squash(either(a, b))
    mixed = torch.where((a == 0) | (b == 0), labels, 0)
    op.watcher.seen.labels.freeze(mixed, op.watcher.where("glu of channels and constants"))
    return labels


@rule("prelu")
def _prelu(op: Op) -> Out:
    found = op.labels(op.bound["self"])
    weight = op.bound["weight"]
    if found is not None and weight.numel() > 1:
        op.watcher.attach_or_freeze(weight, 0, op.channels(found, 1))
    return found
