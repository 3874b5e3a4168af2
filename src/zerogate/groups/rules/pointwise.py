"""Pointwise ops: channels that meet must be removed together, and a parameter that meets them is sliced with them."""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.groups.label_tensors import collapse, first_label, no_labels, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule(Family.POINTWISE)
def pointwise(op: Op) -> Out:
    if not isinstance(op.out, Tensor):
        raise Freeze(f"{op.name} has several outputs")
    shape, met = op.out.shape, None
    for x in op.tensors:
        labels = op.labels(x)
        if labels is None:
            continue
        labels = labels if labels.shape == shape else labels.expand(shape)
        if met is None:
            met = labels
        elif met is not labels:
            met, labels = _one_of_many(op, met, labels), _one_of_many(op, labels, met)
            op.unite(met, labels)
            met = collapse(first_label(met, labels))
    if met is None:
        return None
    for x in op.tensors:
        if op.labels(x) is None:
            op.attach_parameters(x, met)
    _note_factors(op, met)
    return met


_KEEPS_ZERO = (
    "mul",
    "mul_",
    "multiply",
    "div",
    "neg",
    "relu",
    "relu_",
    "gelu",
    "silu",
    "tanh",
    "abs",
    "square",
    "leaky_relu",
)
"""Ops that give 0 where their first operand is 0; a product does where any is."""


def _note_factors(op: Op, labels: Tensor) -> None:
    """Notes parameters that multiply the result, now or in an op before."""
    if op.name not in _KEEPS_ZERO:
        return
    for x in reversed(op.tensors if "mul" in op.name else op.tensors[:1]):
        op.context.note_factor(op.out, x, labels)
        views = op.views(x) if "mul" in op.name and op.labels(x) is None else []
        if len(views) == 1:
            op.context.note_factor(op.out, views[0], labels)


def _one_of_many(op: Op, labels: Tensor, other: Tensor) -> Tensor:
    """These labels, or none where a single one meets many: a map of one channel by which all others are scaled stays,
    and does not tie them."""
    if varying_dims(labels) or not varying_dims(other) or not labels.any():
        return labels
    op.context.freeze(labels, f"{op.name} of a single channel with others")
    return no_labels(labels.shape)


@rule("glu")
def _glu(op: Op) -> Out:
    """The channels at one place of both halves are tied, so that the halves stay equally long."""
    labels = op.labels_or_zero(op.bound["self"])
    dim = op.bound.get("dim", -1) % labels.ndim
    a, b = labels.chunk(2, dim)
    if dim not in varying_dims(labels):
        return a
    op.unite(a, b)
    either = collapse(first_label(a, b))
    op.context.freeze(torch.where((a == 0) | (b == 0), either, 0), "glu of channels and constants")
    return either


@rule("prelu")
def _prelu(op: Op) -> Out:
    """One slope for all channels, or one for each."""
    labels = op.labels(op.bound["self"])
    weight = op.bound["weight"]
    if labels is not None and weight.numel() > 1:
        op.context.attach(weight, 0, op.channels(labels, 1))
    return labels
