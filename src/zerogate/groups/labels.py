"""Integer labels of channels, and which of them belong together (union-find, vectorised).

Label 0 means "nothing that could be removed": constants, padding, the network's inputs. Labels of an activation have the
activation's shape; along dimensions where they do not vary they are expanded (stride 0), which costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Labels:
    """Issues labels, records which must live or die together and which must stay, and resolves it all at the end."""

    def __init__(self) -> None:
        self.count = 1  # 0 is taken
        self._root = torch.zeros(1, dtype=torch.int64)
        self._pairs: list[Tensor] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self.changes = 0
        """Grows with every tie and every label frozen."""

    def new(self, n: int) -> Tensor:
        """n fresh labels, int64 [n]."""
        labels = torch.arange(self.count, self.count + n)
        self.count += n
        return labels

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Ties a[i] to b[i] for every i where both are labels; shapes broadcast."""
        if a is b:
            return
        if a.ndim != 1 or a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
            a, b = narrow_constant(a, b)
        different = (a != b) & (a != 0) & (b != 0)
        if different.any():
            pairs = torch.stack([a[different], b[different]])
            if pairs.shape[1] > 4096:
                both = ((pairs[0] << 32) | pairs[1]).unique()
                pairs = torch.stack([both >> 32, both & 0xFFFFFFFF])
            self._pairs.append(pairs)
            self.changes += 1

    def state(self) -> tuple[Any, ...]:
        """What `restore` takes to undo all that was tied and frozen since."""
        return self._root, [*self._pairs], [*self._frozen], self.changes

    def restore(self, state: tuple[Any, ...]) -> None:
        self._root, self._pairs, self._frozen, _ = state
        self.changes += 1

    def tie_rows(self, rows: Tensor, reason: str) -> Tensor:
        """Ties all labels of each row [rows, n] and returns a label of each row [rows]; a row that holds constants, too,
        stays, and gives 0."""
        vector = rows.amax(1)
        self.unite(rows, vector[:, None])
        mixed = (rows == 0).any(1) & (vector != 0)
        if mixed.any():
            self.freeze(vector[mixed], reason)
            vector = torch.where(mixed, 0, vector)
        return vector

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Marks labels as not removable; the first reason given is the one reported."""
        (labels,) = narrow_constant(labels)
        if labels.any():
            self._frozen.append((labels.flatten(), reason))
            self.changes += 1

    def roots(self) -> Tensor:
        """The class of each label, int64 [count]: its smallest member."""
        if len(self._root) < self.count:
            self._root = torch.cat([self._root, torch.arange(len(self._root), self.count)])
        if not self._pairs:
            return self._root
        pairs, self._pairs = torch.cat(self._pairs, dim=1), []
        root = self._root
        while True:
            ends = root[pairs]
            apart = ends[0] != ends[1]
            if not apart.any():
                break
            pairs, ends = pairs[:, apart], ends[:, apart]
            hooked = root.scatter_reduce(0, ends.flatten(), ends.amin(0).repeat(2), "amin")
            while not torch.equal(hooked, further := hooked[hooked]):
                hooked = further
            root = hooked
        self._root = root
        return root

    def reasons(self) -> tuple[Tensor, list[str]]:
        """For each class the number of the reason why it stays, int64 [count], −1 for those that do not; and the reasons."""
        root, texts = self.roots(), [reason for _, reason in self._frozen]
        why = torch.full((len(root),), len(texts))
        if texts:
            classes = root[torch.cat([labels for labels, _ in self._frozen])]
            which = torch.repeat_interleave(torch.tensor([len(labels) for labels, _ in self._frozen]))
            why.scatter_reduce_(0, classes, which, "amin")
        why[why == len(texts)] = -1
        why[0] = -1
        return why, texts


def narrow_constant(*labels: Tensor) -> list[Tensor]:
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


def any_in(labels: Tensor) -> bool:
    """Whether there is a label among these other than 0."""
    (labels,) = narrow_constant(labels)
    return bool(labels.any())


def labels_in(labels: Tensor) -> Tensor:
    """The distinct labels, without 0."""
    (labels,) = narrow_constant(labels)
    labels = labels.unique()
    return labels[labels != 0]


def squash(labels: Tensor) -> Tensor:
    """The same labels, expanded along every dimension where they do not vary."""
    shape = labels.shape
    (narrow,) = narrow_constant(labels)
    squashed = narrow
    for dim, n in enumerate(narrow.shape):
        if n > 1:
            first = squashed.narrow(dim, 0, 1)
            if torch.equal(squashed, first.expand(squashed.shape)):
                squashed = first
    return labels if squashed is narrow else squashed.expand(shape)


def varying_dims(labels: Tensor) -> list[int]:
    """Dimensions along which squashed labels vary."""
    return [d for d, (n, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)) if n > 1 and stride != 0]


def along(labels: Tensor, dim: int) -> Tensor:
    """Labels as rows, [size of dim, everything else that varies]."""
    dim %= labels.ndim
    shape, stride = labels.shape, labels.stride()
    size = [n if d == dim or s else 1 for d, (n, s) in enumerate(zip(shape, stride, strict=True))]
    if labels.numel() and max(size) == (n := size[dim]) and sum(s > 1 for s in size) <= 1:  # they vary along it alone
        return labels.as_strided((n, 1), (stride[dim], 1))
    labels = labels.as_strided(size, stride)
    return labels.movedim(dim, -1).reshape(-1, size[dim]).T


def over(labels: Tensor, dims: Iterable[int]) -> Tensor:
    """A label of all that lies along these dimensions, which become 1 long."""
    dims = [d % labels.ndim for d in dims]
    (narrow,) = narrow_constant(labels)
    return narrow.amax(dims, keepdim=True).expand([1 if d in dims else n for d, n in enumerate(labels.shape)])


def constant(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Label 0 everywhere."""
    return torch.zeros((), dtype=torch.int64).expand(shape)
