"""Which labels belong together: a vectorised union-find.

Every channel that a layer makes gets an integer label. Label 0 means "nothing that could be removed": constants,
padding, the network's inputs.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from zerogate.groups.label_tensors import drop_expanded
from zerogate.groups.limits import SORTED_PAIRS

LabelsState = tuple[Tensor, list[Tensor], list[tuple[Tensor, str]]]
"""What `Labels.state` gives and `Labels.restore` takes: classes, pairs that are tied besides, frozen labels with
reasons."""


class Labels:
    """Issues labels, records which must be removed together and which must stay, and resolves it all at the end.

    The union-find is lazy: `unite` and `freeze` only take notes, `roots` and `reasons` work them in.
    """

    def __init__(self) -> None:
        self.count = 1  # 0 is taken
        self._root = torch.zeros(1, dtype=torch.int64)
        self._pairs: list[Tensor] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self.changes = 0
        """Grows with every tie, every label frozen and every `restore`: what was read before may hold no longer."""

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
            a, b = drop_expanded(a, b)
        different = (a != b) & (a != 0) & (b != 0)
        if different.any():
            pairs = torch.stack([a[different], b[different]])
            if pairs.shape[1] > SORTED_PAIRS:
                both = ((pairs[0] << 32) | pairs[1]).unique()
                pairs = torch.stack([both >> 32, both & 0xFFFFFFFF])
            self._pairs.append(pairs)
            self.changes += 1

    def state(self) -> LabelsState:
        """What `restore` takes to undo all that is tied and frozen from now on."""
        return self._root, [*self._pairs], [*self._frozen]

    def restore(self, state: LabelsState) -> None:
        """Undoes all that was tied and frozen since `state`."""
        self._root, pairs, frozen = state
        self._pairs, self._frozen = [*pairs], [*frozen]
        self.changes += 1

    def copied(self) -> Labels:
        """The same labels and classes, which go on by themselves."""
        twin = copy.copy(self)
        twin._pairs, twin._frozen = [*self._pairs], [*self._frozen]
        return twin

    def tie_rows(self, rows: Tensor, reason: str) -> Tensor:
        """Ties all labels of each row, [rows, n], and returns one label for each, [rows].

        A row with labels and zeros cannot shrink: it is frozen for the reason, and gives 0.
        """
        vector = rows.amax(1)
        self.unite(rows, vector[:, None])
        mixed = (rows == 0).any(1) & (vector != 0)
        if mixed.any():
            self.freeze(vector[mixed], reason)
            vector = torch.where(mixed, 0, vector)
        return vector

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Marks labels as not removable; of several reasons the first is reported."""
        (labels,) = drop_expanded(labels)
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
        """The number of the reason why each class stays, int64 [count], −1 for classes that can go; and the reasons."""
        root, texts = self.roots(), [reason for _, reason in self._frozen]
        why = torch.full((len(root),), len(texts))
        if texts:
            classes = root[torch.cat([labels for labels, _ in self._frozen])]
            which = torch.repeat_interleave(torch.tensor([len(labels) for labels, _ in self._frozen]))
            why.scatter_reduce_(0, classes, which, "amin")
        why[why == len(texts)] = -1
        why[0] = -1
        return why, texts
