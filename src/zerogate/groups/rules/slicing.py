"""Slices, and picks by position.

Slices count channels from the left. Equal pieces go on working if each loses equally many channels, so these are tied;
a slice at a place that is written down needs its size to follow, which trials find out (`groups.trial`). Picks must
leave the order of channels alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.groups.label_tensors import any_in, collapse, first_label, rows_along, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.on_labels import picked_dims, run_on_labels
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule(Family.SLICE)
def _slice(op: Op) -> Out:
    moved, before, dim = run_on_labels(op), op.labels(op.bound["self"]), op.bound.get("dim", 0)
    if before is None:
        raise Freeze(f"{op.name} by channels")
    dim %= before.ndim
    if dim not in varying_dims(before):
        return moved
    if op.name in ("select", "unbind"):
        if op.name == "select" and varying_dims(before) == [dim]:
            # often only to ask for the shape of the rest
            op.context.defer_freeze(op.out, before, "select among channels")
            return None
        op.tie_along(before, {dim})
        return moved
    _tie_pieces(op, before, dim, [x for x in (moved if isinstance(moved, list) else [moved]) if x is not None])
    return moved


def _tie_pieces(op: Op, before: Tensor, dim: int, pieces: list[Tensor]) -> None:
    """Ties channels at the same place of equal pieces.

    Args:
        before: labels of what is cut, which vary along ``dim``.
        pieces: labels of the pieces.
    """
    size, step, start = before.shape[dim], op.bound.get("step", 1), op.bound.get("start", 0) or 0
    if op.context.any_size_can_follow and op.name in ("slice", "split_with_sizes") and step == 1:
        return
    lengths = {x.shape[dim] for x in pieces}
    length = max(lengths)
    if (step == 1 and lengths == {size}) or not length:
        return
    columns = before.movedim(dim, -1)
    if step > 1 and size % step == 0:
        columns = columns.unflatten(-1, (-1, step))
        op.unite(columns, columns[..., :1])
    elif step == 1 and len(lengths) == 1 and size % length == 0 and start % size % length == 0:
        if length == 1:
            op.tie_along(before, {dim})
            return
        columns = columns.unflatten(-1, (-1, length))
        op.unite(columns, columns[..., :1, :])
    elif step > 1 or "chunk" in op.name or op.name == "tensor_split":
        raise Freeze(f"{op.name} at a fixed place among channels")


@rule(Family.INDEX)
def _pick(op: Op) -> Out:
    before = op.labels(op.args[0])
    places = op.bound.get("index", op.bound.get("indices"))
    same = places if op.name in ("gather", "take_along_dim") else None  # whose places may lie along channels
    others = [x for x in op.tensors if x is not op.args[0] and x is not same]
    if before is None or any(any_in(op.labels_or_zero(x)) for x in others):
        raise Freeze(f"{op.name} by channels")
    if same is not None and (own := op.labels(same)) is not None:
        return _pick_along_channels(op, before, own)
    moved = run_on_labels(op)
    if not isinstance(moved, Tensor) or _same_order(before, moved):
        return moved
    dims = picked_dims(op, before)
    if dims is None or not set(varying_dims(before)) - dims:
        raise Freeze(f"{op.name} among channels")
    return run_on_labels(op, op.tie_along(before, dims))


def _same_order(before: Tensor, after: Tensor) -> bool:
    """Whether the same channels are there after a pick, in the same order."""
    old, new = varying_dims(before), varying_dims(after)
    if not old:
        return True
    if len(old) != len(new):
        return False
    if len(old) == 1:
        return torch.equal(rows_along(before, old[0]), rows_along(after, new[0]))
    return torch.equal(_varying_part(before, old), _varying_part(after, new))


def _varying_part(labels: Tensor, dims: list[int]) -> Tensor:
    for d in range(labels.ndim):
        if d not in dims:
            labels = labels.narrow(d, 0, 1)
    return labels.squeeze()


def _pick_along_channels(op: Op, before: Tensor, places: Tensor) -> Tensor:
    """A pick by places that each channel has of its own, as those of its largest values."""
    dim = op.bound["dim"] % before.ndim
    if dim in varying_dims(before) or dim in varying_dims(places):
        raise Freeze(f"{op.name} among channels")
    picked = before.narrow(dim, 0, 1)
    if any(n != m for d, (n, m) in enumerate(zip(picked.shape, places.shape, strict=True)) if d != dim):
        raise Freeze(f"{op.name} at a part of the places")
    picked = picked.expand(places.shape)
    op.unite(picked, places)
    return collapse(first_label(picked, places))
