"""Where gates lie: which weights they multiply, and along which dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerogate.structure import Group, Structure


@dataclass(frozen=True)
class Placement:
    """How gates lie on one weight: ``weight · z[units]`` with z broadcast by ``view`` (−1 in units: never gated)."""

    weight: str
    units: Tensor
    view: tuple[int, ...]


def channel_placements(structure: Structure, parameters: dict[str, nn.Parameter]) -> list[Placement]:
    placements = []
    for axis in dict.fromkeys(c.consumes for c in structure.calls if c.consumes in structure.axes):
        assert axis is not None
        name, dim = axis
        view = [1] * parameters[name].ndim
        view[dim] = -1
        placements.append(Placement(name, structure.axes[axis], tuple(view)))
    return placements


def weight_placements(
    structure: Structure, shapes: dict[str, torch.Size], excluded: frozenset[str]
) -> tuple[list[Placement], tuple[Group, ...]]:
    placements: list[Placement] = []
    groups: list[Group] = []
    start = 0
    for c in structure.calls:
        if not c.weight or not c.macs or c.layer in excluded or any(p.weight == c.weight for p in placements):
            continue
        stop = start + shapes[c.weight].numel()
        placements.append(Placement(c.weight, torch.arange(start, stop), tuple(shapes[c.weight])))
        groups.append(Group(c.weight, slice(start, stop), (c.layer,), (c.layer,)))
        start = stop
    return placements, tuple(groups)
