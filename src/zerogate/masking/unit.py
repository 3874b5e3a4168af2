"""Units as objects: what is removed as one, where its gates lie, what it costs, and what compaction then cuts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from zerogate.cost.channels import ChannelCost
from zerogate.cost.model import CostModel
from zerogate.cost.weights import WeightCost
from zerogate.cutting.plan import Plan, make_plan
from zerogate.masking.placement import Placement, channel_placements, weight_placements
from zerogate.structure import KINDS, Group, Structure


@dataclass(frozen=True)
class Options:
    """What a user may say of widths.

    Attributes:
        excluded: modules that stay dense.
        min_channels: every group of channels keeps at least so many.
        round_to: the number of channels kept is rounded up to a multiple of this.
    """

    excluded: Collection[str] = frozenset()
    min_channels: int = 1
    round_to: int = 1


@dataclass(frozen=True)
class Layout:
    """Where the gates of a model lie and what it costs to keep its units.

    Attributes:
        unit: what one gate closes.
        structure: units and the slices of tensors that they occupy.
        groups: units that can only go together with layers of their own, in the order of their logits.
        placements: how gates lie on weights.
        cost: counts what is left.
    """

    unit: Unit
    structure: Structure
    groups: tuple[Group, ...]
    placements: tuple[Placement, ...]
    cost: CostModel

    @property
    def units(self) -> int:
        """How many gates there are."""
        return self.groups[-1].slice.stop if self.groups else 0

    @property
    def names(self) -> list[str]:
        """Names of the weights on which gates lie, each once."""
        return list(dict.fromkeys(p.weight for p in self.placements))

    @cached_property
    def computed(self) -> dict[str, Placement]:
        """Those of them that their layers compute → how gates lie on them."""
        return {p.weight: p for p in self.placements if p.computed}


class Unit(ABC):
    """What one gate closes.

    Attributes:
        name: as `Sparsified.unit` says it.
        changes_shapes: whether a closed unit leaves the network; else it is zero and stays.
    """

    name: str
    changes_shapes: bool

    @abstractmethod
    def layout(self, structure: Structure, parameters: Mapping[str, nn.Parameter], options: Options) -> Layout:
        """Gates of this kind on a network of this structure."""

    @abstractmethod
    def plan(self, model: nn.Module, structure: Structure, kept: Tensor) -> Plan:
        """What compaction cuts from the model where these units stay, bool [units]."""


@dataclass(frozen=True)
class Slices(Unit):
    """Channels, heads, or both: slices of tensors, which leave the network.

    Attributes:
        kinds: "channel", "head", or both.
    """

    kinds: frozenset[str]
    changes_shapes = True

    @property
    def name(self) -> str:  # type: ignore[override]
        return "+".join(kind for kind in KINDS if kind in self.kinds)

    def layout(self, structure: Structure, parameters: Mapping[str, nn.Parameter], options: Options) -> Layout:
        cost = ChannelCost(structure, _shapes(parameters), options.min_channels, options.round_to)
        return Layout(self, structure, structure.groups, tuple(channel_placements(structure, parameters)), cost)

    def plan(self, model: nn.Module, structure: Structure, kept: Tensor) -> Plan:
        return make_plan(model, structure, kept)


@dataclass(frozen=True)
class Entries(Unit):
    """Single weights, which become exactly zero; all shapes stay."""

    name = "weight"
    changes_shapes = False

    def layout(self, structure: Structure, parameters: Mapping[str, nn.Parameter], options: Options) -> Layout:
        shapes = _shapes(parameters)
        placements, groups = weight_placements(structure, shapes, options.excluded)
        slices = {p.weight: g.slice for p, g in zip(placements, groups, strict=True)}
        return Layout(self, structure, groups, tuple(placements), WeightCost(structure, slices, shapes))

    def plan(self, model: nn.Module, structure: Structure, kept: Tensor) -> Plan:
        return Plan(plain=structure.plain)


CHANNEL, HEAD, WEIGHT = Slices(frozenset({"channel"})), Slices(frozenset({"head"})), Entries()


def _shapes(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in parameters.items()}
