"""Where gates lie: which weights they multiply, and along which dimension."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerogate.structure import Group, Structure


@dataclass(frozen=True)
class Placement:
    """How gates lie on one weight: ``weight · z[units]``, with z broadcast over all dimensions but one.

    Attributes:
        weight: the parameter's name.
        units: unit of each index along `dim`, int64; −1 where there is no gate. Where `dim` is None, of each entry.
        shape: the weight's.
        dim: the dimension along which gates lie; None where every entry has a gate of its own.
        computed: whether the weight is one that the layer computes: gates then multiply it where it is read.
    """

    weight: str
    units: Tensor
    shape: tuple[int, ...]
    dim: int | None
    computed: bool = False

    @property
    def factor(self) -> tuple[int, ...]:
        """The shape of the gates as they are broadcast over the weight."""
        return self.shape if self.dim is None else tuple(n if d == self.dim else 1 for d, n in enumerate(self.shape))

    @property
    def view(self) -> tuple[int, ...]:
        """The shape in which z[units] broadcasts over the weight; −1 along `dim`."""
        return self.shape if self.dim is None else broadcast_along(self.dim, len(self.shape))

    def rows(self, x: Tensor) -> Tensor:
        """A tensor of the weight's shape as [len(units), entries that share a unit]."""
        return x.reshape(-1, 1) if self.dim is None else x.movedim(self.dim, 0).flatten(1)


def broadcast_along(dim: int, dims: int) -> tuple[int, ...]:
    """The shape in which a vector lies along one dimension of so many, to be broadcast over the others."""
    return tuple(-1 if d == dim % dims else 1 for d in range(dims))


def gated_products(
    placements: Iterable[Placement], names: Sequence[str], weights: Sequence[Tensor], z: Iterable[Tensor]
) -> list[Tensor]:
    """Weights, in the order of their names, times the gates on them: z[units] of each placement."""
    products = dict(zip(names, weights, strict=True))
    for p, part in zip(placements, z, strict=True):
        weight = products[p.weight]
        products[p.weight] = weight * part.view(p.view).to(weight)
    return [*products.values()]


def channel_placements(structure: Structure, parameters: Mapping[str, nn.Parameter]) -> list[Placement]:
    """Gates of channels and heads: on the input slice of every weight that reads them."""
    placements = []
    computed = {c.weight for c in structure.calls if c.computed}
    for axis in dict.fromkeys(c.consumes for c in structure.calls if c.consumes in structure.axes):
        if axis is not None:
            name, dim = axis
            shape = tuple(parameters[name].shape)
            placements.append(Placement(name, structure.axes[axis], shape, dim, name in computed))
    return placements


def weight_placements(
    structure: Structure, shapes: Mapping[str, torch.Size], excluded: Collection[str]
) -> tuple[list[Placement], tuple[Group, ...]]:
    """Gates of single weights: a group for each weight of a layer that multiplies, and its gates in the weight's order."""
    placements: list[Placement] = []
    groups: list[Group] = []
    start = 0
    for c in structure.calls:
        if c.weight not in shapes or not c.macs or c.layer in excluded or any(p.weight == c.weight for p in placements):
            continue
        if c.computed and c.weight in structure.reasons:
            continue
        stop = start + shapes[c.weight].numel()
        units = torch.arange(start, stop)
        placements.append(Placement(c.weight, units, tuple(shapes[c.weight]), None, c.computed))
        groups.append(Group(c.weight, slice(start, stop), (c.layer,), (c.layer,)))
        start = stop
    return placements, tuple(groups)
