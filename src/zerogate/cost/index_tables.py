"""Index tables, and the sums and products over listed entries of a vector that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from zerogate.modules.internals import segment_reduce_backward

T = TypeVar("T")


def on_device(tables: T, device: torch.device) -> T:
    """A copy of dataclasses and dicts with every tensor in them on the device, and all other values as they are."""
    moved: object = tables
    if isinstance(tables, Tensor):
        moved = tables.to(device)
    elif isinstance(tables, dict):
        moved = {key: on_device(value, device) for key, value in tables.items()}
    elif is_dataclass(tables) and not isinstance(tables, type):
        moved = replace(tables, **{f.name: on_device(getattr(tables, f.name), device) for f in fields(tables)})
    return cast(T, moved)


def padded(lists: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Index lists as one int64 matrix [lists, longest], short ones filled up."""
    width = max((len(x) for x in lists), default=0)
    rows = [[*x, *[fill] * (width - len(x))] for x in lists]
    return torch.tensor(rows, dtype=torch.int64).view(len(lists), width)


@dataclass(frozen=True)
class Lists:
    """Index lists of any lengths, one after another."""

    entries: Tensor
    """The entries of all lists, int64."""
    bounds: Tensor
    """Where each list begins and, last, where the last one ends, int64 [lists + 1]."""

    @staticmethod
    def of(rows: Sequence[Sequence[int]]) -> Lists:
        """These lists as tensors."""
        bounds = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
        return Lists(torch.tensor([i for row in rows for i in row], dtype=torch.int64), bounds)


@dataclass(frozen=True)
class WeightedSums:
    """Sums of listed entries of a vector, each entry times a weight of its own."""

    entries: Tensor
    """The entries of all sums, one sum after another, int64."""
    begins: Tensor
    """Where each sum begins among these, int64 [sums]."""
    weights: Tensor
    """What each entry is multiplied by, float64."""

    @staticmethod
    def by_owner(
        owners: Tensor, sums: int, entries: Tensor | None = None, weights: Tensor | float = 1.0
    ) -> WeightedSums:
        """One sum for each of the owners 0 … sums − 1.

        Args:
            owners: the owner of each entry, int64; entries of all other owners are in no sum.
            entries: which entry of the vector that is; default all of them in turn.
            weights: what it is multiplied by.
        """
        order = owners.argsort(stable=True)
        order = order[owners[order] < sums]
        counts = torch.bincount(owners[order], minlength=sums)
        weights = torch.as_tensor(weights, dtype=torch.float64).expand(len(owners))
        return WeightedSums(order if entries is None else entries[order], counts.cumsum(0) - counts, weights[order])

    def __call__(self, x: Tensor) -> Tensor:
        """The sums, [sums], for x in float64, taken as flat."""
        sums = torch.embedding_bag(x.view(-1, 1), self.entries, self.begins, False, 0, False, self.weights)[0]
        return sums.view(-1)


def products(x: Tensor, bounds: Tensor) -> Tensor:
    """The product of each segment of x, [segments]; of an empty one 1. ``bounds`` as in `Lists`."""
    return torch.segment_reduce(x, "prod", offsets=bounds, initial=1, unsafe=True)


def products_backward(grad: Tensor, product: Tensor, x: Tensor, bounds: Tensor) -> Tensor:
    """The gradient with respect to x of its `products`, from the gradient with respect to these."""
    of_x: Tensor = segment_reduce_backward(grad, product, x, "prod", offsets=bounds, initial=1)
    return of_x
