"""What is known of a network's units: which slices of which tensors belong to each, which layers make and read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zerogate.modules.held_numbers import Entry
from zerogate.modules.index import owner_of
from zerogate.modules.outputs import ALL_OUTPUTS, OutputChoice

Axis = tuple[str, int]
"""A dimension of a parameter or buffer: (its name in the model, dim)."""

Place = tuple[Any, ...]
"""Where a module holds a tensor that it has not registered: its name, an attribute, and keys and indices from there."""

SizePlace = tuple[str, str, Entry]
"""A number that a module holds: (the module's name, its attribute, where in that)."""


KINDS = ("channel", "head")


@dataclass(frozen=True)
class LayerCall:
    """One run of a layer, and how its multiply-accumulates follow from the channels that are left.

    MACs per example = ``macs`` · (kept along ``consumes``) · (kept along ``produces``) · (kept along ``repeats``), each
    factor where it is not None.
    """

    layer: str
    """Module that owns the weight."""
    host: str
    """Innermost module whose forward was running: the layer itself, unless its weight is read from outside."""
    weight: str
    consumes: Axis | None
    produces: Axis | None
    macs: float
    channel_dim: int
    """Where the layer's input has its channels, counted from the end; 0 where it is not the input that has them."""
    repeats: Axis | None = None
    """The layer runs once for each channel that is kept along this axis."""
    training: bool = False
    """It is made in training mode alone; its MACs are none of the cost, which is that of evaluation."""
    computed: bool = False
    """Whether the host computes what the layer reads from ``weight`` in such a way that gates must multiply the result."""
    recurrent: bool = False
    """It is one of the weights of a recurrent op, which reads states of its own besides the layer's input: what it consumes
    cannot be selected in front of the layer."""


@dataclass(frozen=True)
class PlainLayer:
    """The layer of torch that a module amounts to whose forward computes a weight and runs one layer with it."""

    op: str
    """The layer's op: ``"linear"``, ``"conv2d"``, ``"conv_transpose1d"``, …"""
    shape: tuple[int, ...]
    """Of its weight."""
    bias: bool
    options: dict[str, int | str | list[int]]
    """What the op is given besides tensors: stride, padding, and so on."""
    source: str = ""
    """The parameter of the weight's shape that the weight is computed from; "" where there is none."""
    sample: tuple[int, ...] = ()
    """Shape of the module's input in the example."""


@dataclass(frozen=True)
class Norm:
    """A module that normalises its input over all channels, and is to do so over the kept ones only.

    Attributes:
        module: its name.
        dim: where its input has the channels, counted from the end.
        shape: of its input in the example.
        labels: of its channels, [size]; in a `Structure` their units, −1 for those that stay.
        reason: given where it cannot be done.
        centred: whether it subtracts the mean (LayerNorm) or not (RMSNorm).
        over: dimensions it normalises over, counted from the end.
        scaled: whether what it divides by is a mean, which counts the channels; not so for sums and largest values.
        factor: its parameter that multiplies each channel; "" where there is none, and the result is rescaled.
        shift: its parameter or buffer that is added to each channel after that; "" for none, None where it is not known.
    """

    module: str
    dim: int
    shape: tuple[int, ...]
    labels: Tensor
    reason: str
    centred: bool = False
    over: tuple[int, ...] = ()
    scaled: bool = True
    factor: str = ""
    shift: str | None = ""


@dataclass(frozen=True)
class SizeAttribute:
    """An attribute whose value follows from what is kept: as many as there are rows with a kept label.

    Attributes:
        module, attribute: where it is; ``entry`` is where in it, if it is a tuple, list or dict.
        rows: labels [n, m]; in a `Structure` their units.
    """

    module: str
    attribute: str
    entry: Entry
    rows: Tensor

    @property
    def key(self) -> SizePlace:
        """Module, attribute, and where in it."""
        return self.module, self.attribute, self.entry


@dataclass(frozen=True)
class Group:
    """Units that the same layers produce and the same layers consume; ``slice`` says where their logits are."""

    name: str
    slice: slice
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    kind: str = "channel"
    """``"channel"``, or ``"head"`` where a unit is all that one head of an attention needs."""
    least: int = 1
    """So many of its units stay, whichever these are."""

    @property
    def units(self) -> int:
        return self.slice.stop - self.slice.start


@dataclass(frozen=True)
class Structure:
    """Units of a network and the slices they occupy.

    Attributes:
        axes: for every axis that holds units, the unit of each index, int64 [size]; −1 where nothing can be removed.
        groups: in the order of their units.
        calls: every layer run, also those that hold no unit.
        inputs: units that are network inputs (no layer makes them; compaction selects them first).
        refused: axis → why its channels, or some of them, stay.
        norms: modules that normalise over the kept ones of their channels.
        size_attributes: attributes whose values follow from what is kept.
        attention: `nn.MultiheadAttention` modules with heads that can go → how they are called.
        reasons: tensors that some op reads in a way that cannot be followed → why.
        unit_of: unit of each label, −1 for those that stay.
        places: tensor → where modules hold it without having registered it, see `modules.unregistered`.
        choice: which outputs of the network count, see `modules.outputs`.
        set_by_forward: names of attributes, as ``path.attribute``, that state sizes and that a run of the model has set.
        trains_apart: whether the network does other things in training mode, which are followed here, too.
        sizes: lengths of axes that a run has shown, those of buffers among them.
        unseen_training: why it is not known what the network does in training mode; empty where it is.
        plain: modules that are cut as the plain layers to which they amount → these. The names of tensors are then those
            of the plain layers: ``weight``, and perhaps ``bias``.
    """

    axes: dict[Axis, Tensor]
    groups: tuple[Group, ...]
    calls: tuple[LayerCall, ...]
    inputs: frozenset[int]
    refused: dict[Axis, str]
    norms: tuple[Norm, ...] = ()
    size_attributes: tuple[SizeAttribute, ...] = ()
    attention: dict[str, dict[str, bool]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    unit_of: Tensor = field(default_factory=lambda: torch.full((1,), -1))
    places: dict[str, list[Place]] = field(default_factory=dict)
    set_by_forward: frozenset[str] = frozenset()
    choice: OutputChoice = ALL_OUTPUTS
    trains_apart: bool = False
    unseen_training: str = ""
    sizes: Mapping[Axis, int] = field(default_factory=dict)
    plain: dict[str, PlainLayer] = field(default_factory=dict)

    def size(self, axis: Axis, shapes: Mapping[str, torch.Size]) -> int:
        """The length of an axis of the dense network; ``shapes``: of its parameters, in which buffers are none."""
        return self.sizes[axis] if axis in self.sizes else shapes[axis[0]][axis[1]]

    @property
    def units(self) -> int:
        return self.groups[-1].slice.stop if self.groups else 0

    def without(self, refused: Mapping[str, str]) -> Structure:
        """The structure in which all units of these groups, by their names, stay for the reasons given."""
        groups, renumbered, start = [], torch.full((self.units + 1,), -1), 0  # the last place is that of −1
        for group in self.groups:
            if group.name not in refused:
                stop = start + group.units
                renumbered[group.slice] = torch.arange(start, stop)
                groups.append(replace(group, slice=slice(start, stop)))
                start = stop
        axes = {axis: renumbered[units] for axis, units in self.axes.items()}
        reasons = {
            axis: refused[group.name]
            for group in self.groups
            for axis, units in self.axes.items()
            if group.name in refused and ((units >= group.slice.start) & (units < group.slice.stop)).any()
        }
        axes = {axis: units for axis, units in axes.items() if (units >= 0).any()}
        owners = {owner_of(name) for name, _ in axes}
        norms = [replace(norm, labels=renumbered[norm.labels]) for norm in self.norms]
        sizes = [replace(size, rows=renumbered[size.rows]) for size in self.size_attributes]
        return replace(
            self,
            axes=axes,
            groups=tuple(groups),
            inputs=frozenset(renumbered[list(self.inputs)].tolist()) - {-1},
            refused=reasons | self.refused,
            norms=tuple(norm for norm in norms if (norm.labels >= 0).any()),
            size_attributes=tuple(size for size in sizes if (size.rows >= 0).any()),
            attention={path: called for path, called in self.attention.items() if path in owners},
            unit_of=renumbered[self.unit_of],
        )

    @property
    def repairs(self) -> tuple[SizeAttribute, ...]:
        """Another name of `size_attributes`."""
        return self.size_attributes

    @cached_property
    def group_of_unit(self) -> Tensor:
        """int64 [units]."""
        sizes = torch.tensor([g.units for g in self.groups], dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self.groups)), sizes)

    @cached_property
    def in_line(self) -> tuple[list[int], Tensor, Tensor]:
        """All of `axes` one after another: their sizes, the number of its axis for each index, and its unit."""
        sizes = [len(units) for units in self.axes.values()]
        number = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
        return sizes, number, torch.cat([*self.axes.values(), torch.empty(0, dtype=torch.int64)])
