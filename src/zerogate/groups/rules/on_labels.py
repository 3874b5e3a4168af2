"""Runs an op that only moves entries on labels: no index arithmetic is written for any of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerogate.groups.arguments import Args, Kwargs, map_arguments
from zerogate.groups.label_tensors import collapse, no_labels, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import INTEGERS, Op, Out
from zerogate.groups.rules.protocol import Freeze, UnknownValue


def run_on_labels(op: Op, instead: Tensor | None = None) -> Out:
    """Labels of an op's results: the op, run on the labels of its operands, or on ``instead`` in place of those of the
    first.

    Operands without labels count as 0; indices and masks stay what they are.
    """

    def to_labels(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        labels = instead if instead is not None and x is op.args[0] else op.labels(x)
        if labels is None and x.dtype in INTEGERS:
            return index_values(op, x)
        return no_labels(x.shape) if labels is None else labels

    moved = call(op, map_arguments(op.args, to_labels), map_arguments(op.kwargs, to_labels))
    return [collapse(x) for x in moved] if isinstance(moved, (list, tuple)) else collapse(moved)


def call(op: Op, args: Args, kwargs: Kwargs) -> Any:
    """What the op gives for other operands. Raises `Freeze` where it does not take them."""
    # what is moved are labels, which stay as they are
    func = getattr(torch.ops.aten, op.name.removesuffix("_")) if op.spec.in_place else op.func
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if op.name != "view":  # labels expanded by stride 0 cannot always be viewed; a copy can
            raise Freeze(f"{op.name} in a form that has no rule") from error
        return args[0].reshape(op.out.shape)


def index_values(op: Op, x: Tensor) -> Tensor:
    """What an index tensor holds, on the CPU, where labels are.

    Where nobody knows, and all places that could be picked have the same labels, zeros do. Else raises `UnknownValue`.
    """
    value = op.context.value_of(x)
    if value is not None:
        return value.cpu()
    if op.spec.family is Family.INDEX and x.dtype != torch.bool:
        labels = op.labels(op.args[0])
        dims = None if labels is None else picked_dims(op, labels)
        if labels is not None and dims is not None and not dims & set(varying_dims(labels)):
            return torch.zeros(x.shape, dtype=torch.int64)
    raise UnknownValue(op.name)


def picked_dims(op: Op, labels: Tensor) -> set[int] | None:
    """Dimensions along which an op picks places; None where that is not known."""
    if op.name == "index":
        return {d for d, i in enumerate(op.args[1]) if i is not None}
    return {op.bound["dim"] % labels.ndim} if op.name in ("index_select", "gather", "take_along_dim") else None
