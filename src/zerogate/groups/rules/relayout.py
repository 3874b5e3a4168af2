"""Ops by which entries stay, move, or are repeated: labels move with them.

A move runs on the labels themselves (`run_on_labels`). What is concatenated along another dimension than that of the
channels shares them: labels at one place are tied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.groups.label_tensors import collapse, no_labels, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.on_labels import run_on_labels
from zerogate.groups.rules.op import Op, Out, rule


@rule(Family.RELAYOUT)
def _move(op: Op) -> Out:
    moved = run_on_labels(op)
    if len(op.tensors) == 1 and isinstance(moved, Tensor):
        op.context.note_factor(op.out, op.tensors[0], moved)
    return moved


@rule(Family.IDENTITY)
def _identity(op: Op) -> Out:
    labels = op.labels(op.args[0])
    if labels is not None and "_like" not in op.name and isinstance(op.out, Tensor):
        op.context.note_factor(op.out, op.args[0], labels)
    return labels


@rule(Family.SHAPE_ONLY, Family.FACTORY)
def _no_labels(op: Op) -> Out:
    return None


@rule("masked_fill", "masked_fill_")
def _masked_fill(op: Op) -> Out:
    """The filled places are constants."""
    labels = op.labels(op.bound["self"])
    return None if labels is None else labels.expand(op.out.shape)


@rule("cat", "concat", "concatenate")
def _cat(op: Op) -> Tensor:
    """Runs without spelling out the dimensions along which no part varies."""
    tensors = [x for x in op.args[0] if x.numel()]
    if not tensors:
        return no_labels(op.out.shape)
    dim = op.bound["dim"] % op.out.ndim
    parts = [op.labels_or_zero(x) for x in tensors]
    if any(dim in varying_dims(p) for p in parts):
        parts = [_with_constants(op, x, p, {dim}) for x, p in zip(tensors, parts, strict=True)]
    across = {d for p in parts for d in varying_dims(p)} - {dim}
    if across and len(parts) > 1:
        parts = _shared(op, tensors, parts, dim, across)
    _attach_empty(op, parts, across)
    for d in range(op.out.ndim):
        if d != dim and all(p.shape[d] == 1 or p.stride(d) == 0 for p in parts):
            parts = [p.narrow(d, 0, 1) for p in parts]
    return collapse(torch.cat(parts, dim).expand(op.out.shape))


@rule("stack")
def _stack(op: Op) -> Out:
    """Parts that are the same everywhere have channels where the others do."""
    tensors = op.args[0]
    parts = [op.labels_or_zero(x) for x in tensors]
    along = {d for p in parts for d in varying_dims(p)}
    if along:
        parts = [_with_constants(op, x, p, along) for x, p in zip(tensors, parts, strict=True)]
        if all(set(varying_dims(p)) == along for p in parts):
            for p in parts[1:]:
                op.unite(p, parts[0])
            parts = [parts[0]] * len(parts)
    return collapse(torch.stack(parts, op.bound["dim"]))


def _with_constants(op: Op, x: Tensor, labels: Tensor, dims: set[int]) -> Tensor:
    """The labels of a part; new ones along these dimensions where it has none and is the same everywhere."""
    made = op.context.constant_channels(x, dims) if op.labels(x) is None and not op.views(x) else None
    return labels if made is None else made


def _shared(op: Op, tensors: list[Tensor], parts: list[Tensor], dim: int, across: set[int]) -> list[Tensor]:
    """Ties labels of the parts that lie at one place along the other dimensions than ``dim``; parts without labels take
    them on, and parameters among the parts are sliced with them."""
    firsts = [p.narrow(dim, 0, 1) for p in parts if dim not in varying_dims(p)]
    shared = torch.zeros((), dtype=torch.int64)
    for p in firsts:
        shared = torch.where(shared == 0, p, shared)
    parts = [
        op.context.make_channels(x, across) if op.labels(x) is None and op.views(x) else part
        for x, part in zip(tensors, parts, strict=True)
    ]
    for i, p in enumerate(parts):
        op.unite(p, shared)
        if not p.any() or dim not in varying_dims(p):
            parts[i] = shared.expand(p.shape)
    return parts


def _attach_empty(op: Op, parts: list[Tensor], across: set[int]) -> None:
    """Slices parameters without entries (class tokens, none of them) with the channels that they are put beside."""
    for x in op.args[0]:
        if not x.numel() and x.ndim == op.out.ndim and op.views(x):
            for d in across:
                labels = next(p for p in parts if d in varying_dims(p))
                op.context.attach(x, d, op.channels(labels, d))


@rule("pixel_shuffle")
def _pixel_shuffle(op: Op) -> Out:
    """The r² channels that make one output channel are tied."""
    r = op.bound["upscale_factor"]
    rows = op.channels(op.labels_or_zero(op.args[0]), -3).view(-1, r * r)
    vector = op.context.tie_rows(rows, "pixel_shuffle of channels and constants")
    return collapse(vector.view(-1, 1, 1).expand(op.out.shape))


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(op: Op) -> Out:
    """Groups stay equally long if the channels at one place in all of them are tied."""
    labels = op.labels_or_zero(op.args[0])
    columns = op.channels(labels, 1).view(op.bound["groups"], -1)
    vector = op.context.tie_rows(columns.T, "channel_shuffle of channels and constants")
    vector = vector.repeat_interleave(op.bound["groups"])
    return collapse(vector.view(1, -1, *[1] * (labels.ndim - 2)).expand(op.out.shape))


@rule("pad", "constant_pad_nd")
def _pad(op: Op) -> Out:
    labels = op.labels(op.bound["self"])
    if labels is None:
        return None
    pad, mode = op.bound["pad"], op.bound.get("mode", "constant")
    padded = [labels.ndim - 1 - i // 2 for i, n in enumerate(pad) if n]
    if not set(padded) & set(varying_dims(labels)):  # what is padded in are constants of the same channels
        for d in padded:
            labels = labels.narrow(d, 0, 1)
        return labels.expand(op.out.shape)
    result = torch.nn.functional.pad(labels.double(), pad, mode=mode)  # reflection lacks an integer kernel
    return collapse(result.long())
