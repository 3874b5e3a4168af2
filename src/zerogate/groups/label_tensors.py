"""Tensors of labels: int64, of the shape of the activation they belong to.

Along dimensions where labels do not vary, they are expanded (stride 0), which costs no memory. Label 0 stands for "nothing
that could be removed".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Sheets(list[Tensor]):
    """Labels of one tensor whose entries have several each: an entry is removed with any of them. Every sheet varies along
    dimensions of its own, as channels along one and units of token mixing along another."""


def no_labels(shape: Sequence[int]) -> Tensor:
    """Label 0 everywhere."""
    return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


def drop_expanded(*labels: Tensor) -> list[Tensor]:
    """Cuts dimensions along which every one of these equally shaped label tensors is expanded down to length 1."""
    strides = [t.stride() for t in labels]
    shape = labels[0].shape
    if len(strides) == 1:
        size = [n if step else min(n, 1) for n, step in zip(shape, strides[0], strict=True)]
    else:
        size = [n if any([s[d] for s in strides]) else min(n, 1) for d, n in enumerate(shape)]
    if size == list(shape):
        return list(labels)
    return [t.as_strided(size, s) for t, s in zip(labels, strides, strict=True)]


def collapse(labels: Tensor) -> Tensor:
    """Expands labels along every dimension where they do not vary; their values stay."""
    shape = labels.shape
    if 0 in shape:  # nothing lies there that could be compared
        return labels
    (narrow,) = drop_expanded(labels)
    collapsed = narrow
    for dim, n in enumerate(narrow.shape):
        if n > 1:
            first = collapsed.narrow(dim, 0, 1)
            if torch.equal(collapsed, first.expand(collapsed.shape)):
                collapsed = first
    return labels if collapsed is narrow else collapsed.expand(shape)


def varying_dims(labels: Tensor) -> list[int]:
    """Dimensions along which collapsed labels vary."""
    return [d for d, (n, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)) if n > 1 and stride != 0]


def any_in(labels: Tensor) -> bool:
    """Whether there is a label among these other than 0."""
    (labels,) = drop_expanded(labels)
    return bool(labels.any())


def labels_in(labels: Tensor) -> Tensor:
    """The distinct labels without 0, int64 [n], in ascending order."""
    (labels,) = drop_expanded(labels)
    labels = labels.unique()
    return labels[labels != 0]


def rows_along(labels: Tensor, dim: int) -> Tensor:
    """Labels as rows, [size of dim, everything else that varies]."""
    dim %= labels.ndim
    shape, stride = labels.shape, labels.stride()
    size = [n if d == dim or s else 1 for d, (n, s) in enumerate(zip(shape, stride, strict=True))]
    if labels.numel() and max(size) == (n := size[dim]) and sum(s > 1 for s in size) <= 1:  # they vary along it alone
        return labels.as_strided((n, 1), (stride[dim], 1))
    labels = labels.as_strided(size, stride)
    return labels.movedim(dim, -1).reshape(-1, size[dim]).T


def varying_rows(labels: Tensor | None, dim: int) -> Tensor | None:
    """`rows_along`; None where the labels do not vary along the dimension."""
    if labels is None or not labels.numel():
        return None
    dim %= labels.ndim
    return None if labels.shape[dim] > 1 and labels.stride(dim) == 0 else rows_along(labels, dim)


def max_over(labels: Tensor, dims: Iterable[int]) -> Tensor:
    """The largest label along these dimensions, which become 1 long: one of those there, if there is any but 0."""
    dims = [d % labels.ndim for d in dims]
    (narrow,) = drop_expanded(labels)
    return narrow.amax(dims, keepdim=True).expand([1 if d in dims else n for d, n in enumerate(labels.shape)])


def first_label(a: Tensor, b: Tensor) -> Tensor:
    """a where it is a label, else b; stays expanded along dimensions where neither varies."""
    shape = a.shape
    a, b = drop_expanded(a, b)
    return torch.where(a != 0, a, b).expand(shape)


def broadcast_shape(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of two tensors broadcast together; None where they do not fit."""
    if a == b:
        return tuple(a)
    if len(a) < len(b):
        a, b = b, a
    shape = list(a)
    for i in range(1, len(b) + 1):
        if shape[-i] == 1:
            shape[-i] = b[-i]
        elif b[-i] not in (1, shape[-i]):
            return None
    return tuple(shape)
