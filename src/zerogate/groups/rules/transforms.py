"""Ops with a law of their own that leave channels apart: Fourier transforms, patches, complex numbers, matrices, bins."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from zerogate.groups.label_tensors import any_in, collapse, drop_expanded, varying_dims
from zerogate.groups.rules.contraction import contract
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.pointwise import pointwise
from zerogate.groups.rules.protocol import Freeze


def _over(op: Op, labels: Tensor, dims: Collection[int], shape: tuple[int, ...]) -> Tensor:
    """Labels of a result whose entries along ``dims`` depend on all of those along them, and which are more or fewer now."""
    dims = {d % labels.ndim for d in dims}
    labels = op.tie_along(labels, dims)
    for d in dims:
        labels = labels.narrow(d, 0, 1)
    return collapse(labels.expand(shape))


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _fft(op: Op) -> Out:
    labels = op.labels(op.bound["self"])
    if labels is None:
        return None
    if set(varying_dims(labels)) & {d % labels.ndim for d in op.bound["dim"]}:
        raise Freeze("a Fourier transform over channels")
    return _over(op, labels, op.bound["dim"], op.out.shape)


@rule("im2col")
def _unfold(op: Op) -> Out:
    """The patches of a channel lie together: a channel of the result for each place of the kernel."""
    labels = op.labels(op.bound["self"])
    if labels is None:
        return None
    if any(d >= labels.ndim - 2 for d in varying_dims(labels)):
        raise Freeze("unfold over places that hold different channels")
    places = op.out.shape[-2] // labels.shape[-3]
    return collapse(labels[..., :1, 0].repeat_interleave(places, -2).expand(op.out.shape))


@rule("col2im")
def _fold(op: Op) -> Out:
    """The patches of a channel are summed up: they are tied."""
    labels = op.labels(op.bound["self"])
    if labels is None:
        return None
    if labels.ndim - 1 in varying_dims(labels):
        raise Freeze("fold of patches that hold different channels")
    (narrow,) = drop_expanded(labels[..., 0])
    if narrow.shape[-1] == 1:
        return collapse(narrow[..., None, None].expand(op.out.shape))
    rows = narrow.unflatten(-1, (op.out.shape[-3], -1))
    return collapse(op.tie_all_along(rows, {rows.ndim - 1})[..., :1, None].expand(op.out.shape))


@rule("view_as_real")
def _as_real(op: Op) -> Out:
    labels = op.labels(op.bound["self"])
    return None if labels is None else labels.unsqueeze(-1).expand(op.out.shape)


@rule("view_as_complex")
def _as_complex(op: Op) -> Out:
    """Pairs of channels that make one number are tied."""
    labels = op.labels(op.bound["self"])
    return None if labels is None else collapse(op.tie_along(labels, {labels.ndim - 1})[..., 0])


@rule(
    "linalg_inv_ex",
    "linalg_cholesky_ex",
    "cholesky",
    "linalg_matrix_exp",
    "_linalg_det",
    "_linalg_slogdet",
    "_linalg_svd",
    "_linalg_eigh",
    "linalg_eig",
    "linalg_qr",
    "linalg_lu",
    "linalg_lu_factor_ex",
)
def _of_matrices(op: Op) -> Out:
    """Everything in a matrix meets; matrices stay apart."""
    labels = op.labels(op.args[0])
    if labels is None:
        return None
    if set(varying_dims(labels)) <= {labels.ndim - 1, labels.ndim - 2}:
        raise Freeze(f"{op.name} of a matrix of channels")
    tied = op.tie_along(labels, {labels.ndim - 1, labels.ndim - 2})[..., 0, 0]
    return [collapse(tied.view(*tied.shape, *[1] * (x.ndim - tied.ndim)).expand(x.shape)) for x in op.results]


@rule("linalg_cross")
def _cross(op: Op) -> Out:
    """Entry by entry, but for the three along one dimension, which meet."""
    met = pointwise(op)
    return op.tie_along(met, {op.bound["dim"] % met.ndim}) if isinstance(met, Tensor) else None


@rule("_cdist_forward", "_euclidean_dist")
def _distances(op: Op) -> Out:
    """Of every row to every other: a sum over their columns, as a product is."""
    a, b = op.args[:2]
    out = contract(op, op.labels_or_zero(a), op.labels_or_zero(b).mT)
    return collapse(out.expand(op.out.shape))


@rule("bucketize", "isin", "searchsorted")
def _bins(op: Op) -> Out:
    """Every value by itself, among edges that are the same for all, or are sliced with what they are for."""
    values = op.bound["elements" if op.name == "isin" else "self"]
    others = [x for x in op.tensors if x is not values]
    if any(any_in(op.labels_or_zero(x)) for x in others):
        raise Freeze(f"{op.name} among channels")
    labels = op.labels(values)
    if labels is None:
        return None
    for x in others:
        if x.ndim > 1 and op.views(x):
            if labels.ndim - 1 in varying_dims(labels):
                raise Freeze(f"{op.name} of channels among edges of their own")
            op.attach_parameters(x, labels[..., :1].expand(*labels.shape[:-1], x.shape[-1]))
    return labels


@rule("max_unpool2d", "max_unpool3d")
def _unpool(op: Op) -> Out:
    """Values go to places of their own channel."""
    labels, places = (op.labels_or_zero(op.bound[name]) for name in ("self", "indices"))
    spatial = 2 if "2d" in op.name else 3
    if any(d >= labels.ndim - spatial for x in (labels, places) for d in varying_dims(x)):
        raise Freeze(f"{op.name} over places that hold different channels")
    op.unite(labels, places)
    either = torch.maximum(labels, places)
    for d in range(labels.ndim - spatial, labels.ndim):
        either = either.narrow(d, 0, 1)
    return collapse(either.expand(op.out.shape))


@rule(
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "soft_margin_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
def _loss(op: Op) -> Out:
    """Entry by entry; most are summed up then."""
    if op.out.ndim or not op.bound["reduction"]:
        return pointwise(op)
    for x in op.tensors:
        if (labels := op.labels(x)) is not None:
            op.context.defer_freeze(op.out, labels, f"{op.name} over channels")
    return None
