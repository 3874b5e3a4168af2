"""Integer labels of channels, and which of them belong together (union-find, vectorised).

Label 0 means "nothing that could be removed": constants, padding, the network's inputs. Labels of an activation have the
activation's shape; along dimensions where they do not vary they are expanded (stride 0), which costs no memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Labels:
    """Issues labels, records which must live or die together and which must stay, and resolves it all at the end."""

    def __init__(self) -> None:
        self.count = 1  # 0 is taken
        self._pairs: list[Tensor] = []
        self._frozen: list[tuple[Tensor, str]] = []

    def new(self, n: int) -> Tensor:
        """n fresh labels, int64 [n]."""
        labels = torch.arange(self.count, self.count + n)
        self.count += n
        return labels

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Ties a[i] to b[i] for every i where both are labels; shapes broadcast."""
        a, b = torch.broadcast_tensors(a, b)
        a, b = narrow_constant(a, b)
        different = (a != b) & (a != 0) & (b != 0)
        if different.any():
            self._pairs.append(torch.stack([a[different], b[different]]).unique(dim=1))

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Marks labels as not removable; the first reason given is the one reported."""
        labels = labels_in(labels)
        if labels.numel():
            self._frozen.append((labels, reason))

    def resolve(self) -> tuple[Tensor, dict[int, str]]:
        """The class of each label, int64 [count] (its smallest member), and the reason of each frozen class."""
        root = torch.arange(self.count)
        pairs = torch.cat(self._pairs, dim=1) if self._pairs else torch.empty(2, 0, dtype=torch.int64)
        while pairs.numel():
            ends = root[pairs]
            low = ends.amin(0)
            hooked = root.scatter_reduce(0, ends.flatten(), low.repeat(2), "amin")
            while not torch.equal(hooked, hooked[hooked]):
                hooked = hooked[hooked]
            if torch.equal(hooked, root):
                break
            root = hooked
        reasons: dict[int, str] = {}
        for labels, reason in self._frozen:
            for cls in root[labels].unique().tolist():
                reasons.setdefault(cls, reason)
        return root, reasons


def narrow_constant(*labels: Tensor) -> list[Tensor]:
    """Cuts dimensions along which every one of these equally shaped label tensors is expanded down to length 1."""
    shape, ndim = labels[0].shape, labels[0].ndim
    for dim in range(ndim):
        if shape[dim] > 1 and all(t.stride(dim) == 0 for t in labels):
            labels = tuple(t.narrow(dim, 0, 1) for t in labels)
    return list(labels)


def labels_in(labels: Tensor) -> Tensor:
    """The distinct labels, without 0."""
    (labels,) = narrow_constant(labels)
    labels = labels.unique()
    return labels[labels != 0]


def squash(labels: Tensor) -> Tensor:
    """The same labels, expanded along every dimension where they do not vary."""
    shape = labels.shape
    for dim in range(labels.ndim):
        if shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            if labels.stride(dim) == 0 or bool((labels == first).all()):
                labels = first
    return labels.expand(shape)


def varying_dims(labels: Tensor) -> list[int]:
    """Dimensions along which squashed labels vary."""
    return [d for d in range(labels.ndim) if labels.shape[d] > 1 and labels.stride(d) != 0]


def along(labels: Tensor, dim: int) -> Tensor:
    """Labels as rows, [size of dim, everything else that varies]."""
    labels = labels.movedim(dim, -1)
    for d in range(labels.ndim - 1):
        if labels.shape[d] > 1 and labels.stride(d) == 0:
            labels = labels.narrow(d, 0, 1)
    return labels.reshape(-1, labels.shape[-1]).T
