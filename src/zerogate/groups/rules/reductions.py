"""Pools, reductions, and ops that mix what lies along one dimension.

Along dimensions without channels, labels pass. What is mixed along a dimension of channels cannot shrink, so it is
tied; where nothing is left untied, the channels stay.
"""

from __future__ import annotations

from zerogate.groups.label_tensors import collapse, drop_expanded, first_label, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.pointwise import pointwise
from zerogate.groups.rules.protocol import Freeze

_PARTS_OF_NORMS = ("mean", "var", "std", "var_mean", "norm", "linalg_vector_norm", "sum", "amax", "amin", "max", "min")
"""Reductions by which a norm that is written out is recognised, or the mean and largest value of all channels."""


@rule(Family.POOL)
def _pool(op: Op) -> Out:
    """Over places in the last dimensions, as many as the op's name says; a second result, of places, has the same
    channels."""
    spatial = int(next(c for c in op.name if c.isdigit()))
    labels = op.labels(op.args[0])
    if labels is None:
        return None
    if any(d >= labels.ndim - spatial for d in varying_dims(labels)):
        raise Freeze(f"{op.name} over places that hold different channels")
    for d in range(labels.ndim - spatial, labels.ndim):
        labels = labels.narrow(d, 0, 1)
    return op.all_results(labels.expand(op.results[0].shape))


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _grid_sampler(op: Op) -> Out:
    """Places are chosen for all channels of an image, or for those of one head, where heads are images of their own."""
    labels, grid = op.labels(op.bound["input"]), op.labels(op.bound["grid"])
    own = grid is not None and 0 in varying_dims(grid)
    if grid is not None and not own:
        op.context.freeze(grid, f"{op.name} at places that depend on channels")
    if labels is None and not own:
        return None
    labels = op.labels_or_zero(op.bound["input"])
    if set(varying_dims(labels)) - {0, 1}:
        raise Freeze(f"{op.name} over places that hold different channels")
    if grid is not None and own:
        heads = op.tie_all_along(grid, range(1, grid.ndim))
        for d in range(1, grid.ndim):
            heads = heads.narrow(d, 0, 1)
        (narrow,) = drop_expanded(labels)
        op.unite(narrow, heads)
        labels = first_label(labels, heads.expand(labels.shape))
    (labels,) = drop_expanded(labels)
    return collapse(labels.expand(op.out.shape))


@rule(Family.REDUCTION)
def _reduce(op: Op) -> Out:
    labels = op.labels(op.args[0])
    if "other" in op.bound:  # max(a, b)
        return pointwise(op)
    if labels is None:
        return None
    dim = op.bound.get("dim")
    dims = range(labels.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    reduced = {d % labels.ndim for d in dims}
    vary = set(varying_dims(labels))
    if vary and vary <= reduced:
        if op.name == "sum" and op.context.record_sum(op.args[0]):
            return None
        if op.name in _PARTS_OF_NORMS and op.context.record_norm(labels):
            return op.all_results(None)
        if op.name == "mean":  # often only to be printed, or for a loss
            op.context.defer_freeze(op.out, labels, "mean over channels")
            return None
        raise Freeze(f"{op.name} over channels")
    labels = op.tie_along(labels, reduced)
    keepdim = bool(op.bound.get("keepdim"))
    rest = tuple((slice(0, 1) if keepdim else 0) if d in reduced else slice(None) for d in range(labels.ndim))
    return op.all_results(labels[rest])


@rule(Family.MIXING)
def _mix(op: Op) -> Out:
    """Softmax and cumulative sums: along one dimension."""
    labels = op.labels(op.args[0])
    return op.all_results(None if labels is None else op.tie_along(labels, {op.bound["dim"] % labels.ndim}))


@rule(Family.ORDER)
def _order(op: Op) -> Out:
    """Values, and their places, along one dimension, of which there may be fewer or one left."""
    labels = op.labels(op.args[0])
    if labels is None:
        return None
    dim = op.bound.get("dim", -1) % labels.ndim
    if dim in varying_dims(labels):
        raise Freeze(f"{op.name} over channels")
    first = op.results[0]
    if first.ndim == labels.ndim:
        return op.all_results(collapse(labels.narrow(dim, 0, 1).expand(first.shape)))
    return op.all_results(labels.select(dim, 0))
