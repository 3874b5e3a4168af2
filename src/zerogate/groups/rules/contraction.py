"""What all sums over channels have in common.

With a parameter, an op is a layer: it consumes the labels along the dimension that is summed, and the parameter makes
new ones. A product of two activations ties all labels that it sums together, and its result carries the union of what
met there; so the channels of one attention head come out as one class without any rule named after attention.
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import (
    any_in,
    broadcast_shape,
    collapse,
    first_label,
    labels_in,
    max_over,
    no_labels,
    varying_dims,
)
from zerogate.groups.rules.op import Op
from zerogate.groups.rules.protocol import Freeze, View


def whole_parameter(op: Op, x: Tensor) -> View | None:
    """The one parameter that makes a matrix a layer's weight; None where it is something else."""
    return None if op.labels(x) is not None else op.context.carrier_of(x)


def contract(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Labels of a @ b, from labels [..., n, k] and [..., k, m].

    All labels that are summed together are tied, and so is what meets. Raises `Freeze` where a sum runs over all
    channels of an operand: a single class of everything is left, and nothing could be removed.
    """
    a, b = _own_parts(op, a, b), _own_parts(op, b, a)
    k = a.shape[-1]
    both = any_in(a) and any_in(b)
    over_a, over_b = a.ndim - 1 in varying_dims(a), b.ndim - 2 in varying_dims(b)
    rows, columns = max_over(a, [-1]), max_over(b, [-2])
    if over_a:
        op.unite(a, rows)
    if over_b:
        op.unite(b, columns)
    rows, columns = collapse(rows.squeeze(-1)), collapse(columns.squeeze(-2))
    for rest, is_summed in ((rows, over_a), (columns, over_b)):
        if is_summed and k > 1 and not varying_dims(rest):
            raise Freeze(f"{op.name} over all channels")
    left, right = rows[..., :, None], columns[..., None, :]
    shape = broadcast_shape(left.shape, right.shape)
    if shape is None:
        raise Freeze(f"{op.name} of shapes that do not fit")
    left, right = left.expand(shape), right.expand(shape)
    op.unite(left, right)
    out = collapse(first_label(collapse(left), collapse(right)))
    if both or over_a or over_b:
        op.context.mark_heads(labels_in(out))
    return out


def _own_parts(op: Op, one: Tensor, other: Tensor) -> Tensor:
    """Labels of one operand, or none of them where it is the same for all parts of the other, as the keys and values of
    multi-query attention are: then it stays, and those parts can be removed one by one."""
    mine = {d - one.ndim for d in varying_dims(one)}
    theirs = {d - other.ndim for d in varying_dims(other)}
    batch = {d for d in theirs if d < -2}
    if (theirs and not mine) or batch - mine:
        op.context.freeze(one, f"{op.name} with something that all of its parts share")
        return no_labels(one.shape)
    return one
