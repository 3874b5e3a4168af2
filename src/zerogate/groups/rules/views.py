"""Parameters that are moved about or computed with before use.

A move runs on the indices of their entries as it does on labels. What is computed entry by entry lies where its operands
lie; whether zeros stay zeros is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from zerogate.groups.arguments import map_arguments
from zerogate.groups.label_tensors import collapse, drop_expanded
from zerogate.groups.limits import FOLLOWED_VIEW_ENTRIES
from zerogate.groups.ops import Family
from zerogate.groups.rules.on_labels import call, index_values
from zerogate.groups.rules.op import INTEGERS, Op
from zerogate.groups.rules.protocol import View
from zerogate.modules.run import holds_numbers

_PICKS = ("index", "index_select", "roll")
"""Picks by position that are followed."""
_OTHER_VALUES = ("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "fill_", "zero_")
"""Ops that leave entries where they are, and their values not."""
_DRAWS = 8
"""How often numbers are drawn to see whether an op keeps zeros: half of them are negative."""
_DIMS_APART = ("permute", "transpose", "t", "numpy_T", "expand")
"""Moves that only reorder or lengthen dimensions: their indices stay expanded, and take no memory at any size."""


def follow_views(op: Op, views_of: Callable[[Tensor], list[View]] | None = None) -> list[list[View]] | None:
    """Views that come out of a move or pointwise op whose operands are parameters and constants alone, one list for each
    result; None where the op does something else with them.

    Args:
        op: the op.
        views_of: what a move is followed for; None for parameters.
    """
    outs = op.results
    if op.name in ("_weight_norm", "_weight_norm_interface"):
        return _normed(op)
    if op.name.removeprefix("_").startswith("fake_quantize_per_") and len(outs) == 2:
        return _quantised(op)
    is_computed = op.spec.pointwise or op.name.startswith("masked_fill")
    if op.spec.family is Family.IDENTITY or is_computed:
        every = [v for x in op.tensors for v in op.views(x, integers=is_computed)]
        if len(outs) != 1 or (is_computed and any(v.normed for v in every)):
            return None
        if is_computed or op.name in _OTHER_VALUES:
            return [_computed(op, every)]
        return [[replace(v, index=tuple(i.expand(outs[0].shape) for i in v.index)) for v in every]]
    of = op.views if views_of is None else views_of
    views = {id(x): of(x) if holds_numbers(x) else [] for x in op.tensors}
    if not op.spec.is_move and op.name not in _PICKS:
        return None
    if outs[0].numel() > FOLLOWED_VIEW_ENTRIES and op.name not in _DIMS_APART:
        return None
    known = {v.name: v for of_tensor in views.values() for v in of_tensor}
    result: list[list[View]] = [[] for _ in outs]
    for name, view in known.items():
        alike = [v for of_tensor in views.values() for v in of_tensor if v.name == name]
        moved = [_moved_indices(op, views, name, d) for d in range(len(view.index))]
        for number in range(len(outs)):
            index = tuple(collapse(m[number]) for m in moved)
            result[number].append(
                View(
                    name,
                    index,
                    any(v.changed for v in alike),
                    all(v.keeps_zero for v in alike),
                    any(v.normed for v in alike),
                )
            )
    return result


def _computed(op: Op, operands: list[View]) -> list[View]:
    """What a result that is computed entry by entry is made of: each parameter once for each way in which it lies there."""
    result: list[View] = []
    shape = op.results[0].shape
    zeros: dict[str, bool] = {}
    for view in operands:
        if view.name not in zeros:
            zeros[view.name] = _keeps_zero(op, view.name)
        index = tuple(i.expand(shape) for i in view.index)
        if not any(v.name == view.name and _same_places(v.index, index) for v in result):
            result.append(View(view.name, index, True, zeros[view.name]))
    return result


def _same_places(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(x.stride() == y.stride() and torch.equal(*drop_expanded(x, y)) for x, y in zip(a, b, strict=True))


def _keeps_zero(op: Op, name: str) -> bool:
    """Whether a pointwise op gives zero wherever an entry of this parameter is zero: it runs on single numbers, with zero in
    place of what is zero there, and any number in place of all else."""
    generator = torch.Generator().manual_seed(0)

    def number(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        if any(v.name == name and v.keeps_zero for v in op.views(x, integers=True)):
            return torch.zeros((), dtype=x.dtype)
        value = op.context.value_of(x)
        if value is not None and value.numel() == 1:
            return value.reshape(()).cpu()
        if x.dtype == torch.bool:
            return torch.rand((), generator=generator) < 0.5
        return (torch.randn((), generator=generator) * 3).to(x.dtype)

    for _ in range(_DRAWS):
        try:
            out = op.func(*map_arguments(op.args, number), **map_arguments(op.kwargs, number))
        except Exception:  # it takes no single numbers
            return False
        if not isinstance(out, Tensor) or bool(out != 0):
            return False
    return True


def _quantised(op: Op) -> list[list[View]]:
    """Fake quantisation with the mask that its gradient takes: zero is on the grid, and a scale for each channel is sliced
    with these."""
    shape = op.results[0].shape
    views = [replace(view, changed=True) for view in op.views(op.args[0])]
    axis = op.bound.get("axis")
    along = [n if d == axis else 1 for d, n in enumerate(shape)]
    for x in op.args[1:3] if axis is not None else ():
        views += [
            View(v.name, tuple(i.reshape(along).expand(shape) for i in v.index), True, False)
            for v in op.views(x, integers=True)
        ]
    return [views, views]


def _normed(op: Op) -> list[list[View]]:
    """Torch's weight norm: what is cut from the weight is cut from v, and from g, which has an entry for each slice."""
    v, g = op.args[:2]
    shape = op.results[0].shape
    views = [replace(view, changed=True, normed=True) for view in op.views(v)]
    views += [View(w.name, tuple(i.expand(shape) for i in w.index), True, False) for w in op.views(g)]
    return [views, *[[] for _ in op.results[1:]]]


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
    out = call(op, args, kwargs)
    return list(out) if isinstance(out, (list, tuple)) else [out]
