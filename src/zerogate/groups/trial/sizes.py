"""How many of each label's places are left when some labels are removed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zerogate.groups.arguments import tensors_among
from zerogate.groups.label_tensors import drop_expanded, labels_in
from zerogate.groups.recording.record import ResultLabels, Step

Shape = tuple[int, ...]


class LabelVectors:
    """Labels of all steps' results that vary along a single dimension, one after another: to count them at once."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.of: dict[int, tuple[int, int, Tensor]] = {}
        """id of a tensor of labels → the dimension along which it varies, the number of its vector, and the tensor itself,
        held so that no other gets its id."""
        vectors: list[Tensor] = []
        known: dict[tuple[int, int, int], int] = {}
        for step in steps:
            for full, results in step.outs:
                for labels in [results] if isinstance(results, Tensor) else results or ():
                    if id(labels) in self.of or not labels.numel():
                        continue
                    stride = labels.stride()
                    vary = [d for d, n in enumerate(full) if n > 1 and stride[d]]
                    if len(vary) != 1:
                        continue
                    (d,) = vary
                    key = labels.data_ptr(), stride[d], full[d]
                    if key not in known:
                        known[key] = len(vectors)
                        vectors.append(labels.as_strided((full[d],), (stride[d],)))
                    self.of[id(labels)] = d, known[key], labels
        self.labels = torch.cat([torch.empty(0, dtype=torch.int64), *vectors])
        lengths = torch.tensor([len(v) for v in vectors], dtype=torch.int64)
        self.number = torch.repeat_interleave(torch.arange(len(vectors)), lengths)
        self.count = len(vectors)

    def kept_of_each(self, kept: Tensor) -> list[int]:
        """How many places of each vector stay; ``kept``: bool [labels]."""
        counts = torch.zeros(self.count, dtype=torch.int64)
        return counts.index_add_(0, self.number, kept[self.labels].long()).tolist()


class Sizes:
    """Shapes and counts that a run must have when only some labels are kept.

    Args:
        kept: which labels stay, bool [labels].
        vectors: of the recorded run.
    """

    def __init__(self, kept: Tensor, vectors: LabelVectors) -> None:
        self.kept = kept
        self._vectors = vectors
        self._kept_of_each = vectors.kept_of_each(kept)
        self._shapes: dict[tuple[int, Shape, Shape], Shape | None] = {}
        self._alive: list[Tensor] = []
        """Tensors whose addresses are keys of the shapes, so that no others get these."""

    def shape(self, full: Shape, labels: ResultLabels) -> Shape | None:
        """The shape that is left of a result of shape ``full``; None if what is left is no box."""
        if labels is None:
            return full
        if isinstance(labels, list):
            shapes = [shape for each in labels if (shape := self.shape(full, each)) is not None]
            return tuple(min(sizes) for sizes in zip(*shapes, strict=True)) if len(shapes) == len(labels) else None
        vector = self._vectors.of.get(id(labels))
        if vector is not None:
            d, number, _ = vector
            return (*full[:d], self._kept_of_each[number], *full[d + 1 :])
        key = labels.data_ptr(), full, labels.stride()
        if key not in self._shapes:
            self._alive.append(labels)
            self._shapes[key] = self._box_left(full, labels)
        return self._shapes[key]

    def _box_left(self, full: Shape, labels: Tensor) -> Shape | None:
        (narrow,) = drop_expanded(labels)
        vary = [d for d, (n, stride) in enumerate(zip(full, labels.stride(), strict=True)) if n > 1 and stride]
        stays, shape = self.kept[narrow], [*full]
        if not vary:
            return full if bool(stays.all()) else None
        for d in vary:
            others = [i for i in vary if i != d]
            shape[d] = int((stays.any(dim=others) if others else stays).sum())
        return tuple(shape) if int(stays.sum()) == math.prod(shape[d] for d in vary) else None

    def removes_any(self, labels: object) -> bool:
        """Whether any label in these tensors, or lists of tensors, is removed."""
        return any(not bool(self.kept[drop_expanded(each)[0]].all()) for each in tensors_among([labels]))

    def count(self, rows: Tensor) -> int:
        """How many rows of labels [n, m] have a label that stays."""
        return int(self.kept[rows].any(1).sum()) if len(rows) else 0


def labels_among(*labels: object) -> Tensor:
    """The distinct labels other than 0 of each tensor in these, one after another, int64 [n]."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *(labels_in(x) for x in tensors_among(labels))])
