"""Parameters that are moved about before use: a move runs on the indices of their entries as it does on labels."""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.groups.arguments import map_arguments
from zerogate.groups.label_tensors import collapse
from zerogate.groups.limits import FOLLOWED_VIEW_ENTRIES
from zerogate.groups.ops import Family
from zerogate.groups.rules.on_labels import call, index_values
from zerogate.groups.rules.op import INTEGERS, Op
from zerogate.groups.rules.protocol import View

_PICKS = ("index", "index_select", "roll")
"""Picks by position that are followed."""
_DIMS_APART = ("permute", "transpose", "t", "numpy_T", "expand")
"""Moves that only reorder or lengthen dimensions: their indices stay expanded, and take no memory at any size."""


def follow_views(op: Op) -> list[list[View]] | None:
    """Views that come out of a move or pointwise op whose operands are parameters and constants alone, one list for each
    result; None where the op does something else with them."""
    outs = op.results
    views = {id(x): op.views(x) for x in op.tensors}
    if op.spec.family is Family.IDENTITY or op.spec.pointwise:
        if len(outs) != 1:
            return None
        shape, changes = outs[0].shape, op.spec.family is not Family.IDENTITY
        every = [v for of_tensor in views.values() for v in of_tensor]
        return [[View(v.name, tuple(i.expand(shape) for i in v.index), changes or v.changed) for v in every]]
    if not op.spec.is_move and op.name not in _PICKS:
        return None
    if outs[0].numel() > FOLLOWED_VIEW_ENTRIES and op.name not in _DIMS_APART:
        return None
    changed = {v.name for of_tensor in views.values() for v in of_tensor if v.changed}
    result: list[list[View]] = [[] for _ in outs]
    for name in dict.fromkeys(v.name for of_tensor in views.values() for v in of_tensor):
        dims = next(len(v.index) for of_tensor in views.values() for v in of_tensor if v.name == name)
        moved = [_moved_indices(op, views, name, d) for d in range(dims)]
        for number in range(len(outs)):
            result[number].append(View(name, tuple(collapse(m[number]) for m in moved), name in changed))
    return result


def _moved_indices(op: Op, views: dict[int, list[View]], name: str, dim: int) -> list[Tensor]:
    """Where along one of its dimensions the entries of a parameter lie in each result; −1 for what is none of it."""

    def to_index(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        for view in views[id(x)]:
            if view.name == name:
                return view.index[dim]
        if x.dtype in INTEGERS and (op.name != "index" or op.context.value_of(x) is not None):
            return index_values(op, x)
        if x.dtype in INTEGERS:  # places that nobody knows, of a dimension that keeps its own
            return torch.zeros(x.shape, dtype=torch.int64)
        return torch.full((), -1).expand(x.shape)

    args, kwargs = map_arguments(op.args, to_index), map_arguments(op.kwargs, to_index)
    out = args[0].expand(op.results[0].shape) if op.name.startswith("masked_fill") else call(op, args, kwargs)
    return list(out) if isinstance(out, (list, tuple)) else [out]
