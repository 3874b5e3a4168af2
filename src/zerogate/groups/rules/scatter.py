"""Writes at positions, and reductions of what goes to one position, as graph networks have them."""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import collapse, first_label, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule("index_put", "index_put_")
def _index_put(op: Op) -> Out:
    """Places are picked along dimensions without channels; what is put there has the channels of the rest."""
    labels, values = op.labels(op.bound["self"]), op.bound["values"]
    written = op.labels(values)
    picked = [d for d, i in enumerate(op.bound["indices"]) if i is not None]
    rest = op.out.ndim - 1 - picked[-1]
    if written is None and labels is None:
        return None
    if labels is not None and set(picked) & set(varying_dims(labels)):
        raise Freeze(f"{op.name} among channels")
    if written is None or not values.numel():
        return labels
    if any(d < written.ndim - rest for d in varying_dims(written)):
        raise Freeze(f"{op.name} of other channels at each place")
    written = written[(0,) * max(written.ndim - rest, 0)].expand(op.out.shape)
    return collapse(written) if labels is None else _joined(op, labels, written)


@rule(Family.SCATTER)
def _scatter(op: Op) -> Out:
    """Places are picked along one dimension; what is put there has the same channels, and so have the places, where every
    channel has its own."""
    labels, source = op.labels_or_zero(op.bound["self"]), op.bound.get("source", op.bound.get("src"))
    dim = op.bound["dim"] % labels.ndim
    written, places = op.labels(source), op.labels(op.bound.get("index"))
    if op.name == "select_scatter":
        written = None if written is None else written.unsqueeze(dim)
    if any(x is not None and dim in varying_dims(x) for x in (labels, written, places)):
        raise Freeze(f"{op.name} among channels")
    if places is not None:
        labels = _joined(op, labels, _laid_over(op, places, labels, dim))
    if written is None:
        if isinstance(source, Tensor) and source.ndim == labels.ndim and op.views(source):
            op.attach_parameters(source, labels.narrow(dim, 0, 1).expand(source.shape))
        return labels
    return _joined(op, labels, _laid_over(op, written, labels, dim))


def _laid_over(op: Op, written: Tensor, labels: Tensor, dim: int) -> Tensor:
    """Labels of what is written along one dimension, all over the tensor that it is written to."""
    if any(n != m for d, (n, m) in enumerate(zip(written.shape, labels.shape, strict=True)) if d != dim):
        raise Freeze(f"{op.name} at a part of the places")
    return written.narrow(dim, 0, 1).expand(labels.shape)


@rule("index_fill", "index_fill_")
def _index_fill(op: Op) -> Out:
    """What is filled in are constants of the same channels."""
    labels = op.labels(op.bound["self"])
    if labels is not None and op.bound["dim"] % labels.ndim in varying_dims(labels):
        raise Freeze(f"{op.name} among channels")
    return labels


@rule("segment_reduce")
def _segment_reduce(op: Op) -> Out:
    """Rows that follow each other are reduced together: channels lie along the others."""
    labels = op.labels(op.bound["data"])
    if labels is None:
        return None
    axis = op.bound["axis"] % labels.ndim
    if axis in varying_dims(labels):
        raise Freeze("segment_reduce among channels")
    return labels.narrow(axis, 0, 1).expand(op.out.shape)


def _joined(op: Op, labels: Tensor, written: Tensor) -> Tensor:
    """Labels of a tensor into which others are written: tied where both have any."""
    op.unite(labels, written)
    return collapse(first_label(labels, written))
