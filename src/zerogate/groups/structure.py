"""What watching a run finds: which slices of which tensors belong to which unit, and who consumes whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zerogate.groups.labels import Labels
from zerogate.tensors import owner_of

Axis = tuple[str, int]
"""A dimension of a parameter or buffer: (its name in the model, dim)."""


@dataclass(frozen=True)
class Call:
    """One run of a layer, and how its multiply-accumulates follow from the channels that are left.

    MACs per example = ``macs`` · (kept along ``consumes``) · (kept along ``produces``), each factor where it is not None.
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
    """Where the layer's input has its channels, counted from the end."""


@dataclass(frozen=True)
class Group:
    """Units that the same layers produce and the same layers consume; ``slice`` says where their logits are."""

    name: str
    slice: slice
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    kind: str = "channel"
    """``"channel"``, or ``"head"`` where a unit is all that one head of an attention needs."""

    @property
    def units(self) -> int:
        return self.slice.stop - self.slice.start


@dataclass
class Observations:
    """Raw record of one watched run, in labels."""

    labels: Labels = field(default_factory=Labels)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    inputs: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    read_otherwise: dict[str, str] = field(default_factory=dict)
    """Tensors that some op without a rule has read, with the reason to give."""
    cuts: list[tuple[Tensor, str, bool]] = field(default_factory=list)
    """Labels [rows, length] that an op counts off by position, the reason to refuse, and whether whole rows may go.

    They can be removed if every row always loses equally many: if all rows hold the same classes equally often, or, where
    whole rows may go, if each row is of one class."""


@dataclass(frozen=True)
class Structure:
    """Units of a network and the slices they occupy.

    Attributes:
        axes: for every axis that holds units, the unit of each index, int64 [size]; −1 where nothing can be removed.
        groups: in the order of their units.
        calls: every layer run, also those that hold no unit.
        inputs: units that are network inputs (no layer makes them; compaction selects them first).
        refused: axis → why its channels, or some of them, stay.
    """

    axes: dict[Axis, Tensor]
    groups: tuple[Group, ...]
    calls: tuple[Call, ...]
    inputs: frozenset[int]
    refused: dict[Axis, str]

    @property
    def units(self) -> int:
        return self.groups[-1].slice.stop if self.groups else 0

    @property
    def group_of_unit(self) -> Tensor:
        """int64 [units]."""
        sizes = torch.tensor([g.units for g in self.groups], dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(self.groups)), sizes)


def build(seen: Observations, exclude: Iterable[str] = ()) -> Structure:
    """Turns a watched run into units and groups.

    Args:
        seen: the run.
        exclude: modules whose channels stay, coming in and going out.
    """
    excluded = set(exclude)
    for (tensor, _), vector in seen.axes.items():
        if owner_of(tensor) in excluded:
            seen.labels.freeze(vector, f"{owner_of(tensor)} is excluded")
        if tensor in seen.read_otherwise:
            seen.labels.freeze(vector, seen.read_otherwise[tensor])
    root, reasons = seen.labels.resolve()
    axes = {axis: root[vector] for axis, vector in seen.axes.items()}  # root[0] is 0
    _freeze_cuts(seen, root, reasons)

    consumed = {c.consumes for c in seen.calls if c.consumes}
    produced = {c.produces for c in seen.calls if c.produces}
    _freeze_inputs(seen, root, axes, produced, reasons)
    input_roots = set(root[seen.inputs].tolist())
    members: dict[int, list[tuple[int, int]]] = defaultdict(list)  # root → [(axis number, how often)]
    has_consumer: set[int] = set()
    for number, (axis, vector) in enumerate(axes.items()):
        for label, times in zip(*(t.tolist() for t in vector.unique(return_counts=True)), strict=True):
            members[label].append((number, times))
            if axis in consumed:
                has_consumer.add(label)
    for label in members:
        if label and label not in has_consumer:
            reasons.setdefault(label, "no layer consumes it")

    by_signature: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for label in sorted(members):
        if label and label not in reasons:
            by_signature[tuple(members[label])].append(label)
    names = list(axes)
    unit_of = torch.full((len(root),), -1)
    groups: list[Group] = []
    taken: dict[str, int] = defaultdict(int)
    start = 0
    for signature, labels in by_signature.items():
        held = [names[number] for number, _ in signature]
        producers = _unique(owner_of(a[0]) for a in held if a in produced)
        consumers = _unique(owner_of(a[0]) for a in held if a in consumed)
        name = producers[0] if producers else "input"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        groups.append(Group(name, slice(start, start + len(labels)), producers, consumers))
        unit_of[torch.tensor(labels)] = torch.arange(start, start + len(labels))
        start += len(labels)
    inputs = frozenset(unit_of[root[seen.inputs]].tolist()) - {-1}
    refused = {}
    for axis, vector in axes.items():
        frozen = [label for label in vector.unique().tolist() if label in reasons]
        if frozen and not set(frozen) <= input_roots:
            refused[axis] = reasons[frozen[0]]
    units = {axis: unit_of[vector] for axis, vector in axes.items()}
    return Structure(
        {axis: v for axis, v in units.items() if (v >= 0).any()}, tuple(groups), tuple(seen.calls), inputs, refused
    )


def _freeze_cuts(seen: Observations, root: Tensor, reasons: dict[int, str]) -> None:
    settled = False
    while not settled:  # what one cut freezes stays, and may unbalance another
        settled = True
        stays = torch.zeros(len(root), dtype=torch.bool)
        stays[torch.tensor([0, *reasons], dtype=torch.int64)] = True
        for labels, reason, by_row in seen.cuts:
            rows = torch.where(stays[root[labels]], 0, root[labels])
            ordered = rows.sort(1).values
            if not (ordered == ordered[0]).all() and not (by_row and (ordered[:, 0] == ordered[:, -1]).all()):
                settled = False
                for label in rows.unique().tolist():
                    if label:
                        reasons.setdefault(label, reason)
                break


def _freeze_inputs(
    seen: Observations, root: Tensor, axes: dict[Axis, Tensor], produced: set[Axis], reasons: dict[int, str]
) -> None:
    """Network inputs can be selected only in front of a layer that is called as a module and tied to nothing else."""
    consumed = {c.consumes for c in seen.calls}
    made = {label for axis in produced for label in axes[axis].tolist()}
    attached = {label for axis, vector in axes.items() if axis not in consumed for label in vector.tolist()}
    outside = {label for c in seen.calls if c.consumes and c.host != c.layer for label in axes[c.consumes].tolist()}
    for label in root[seen.inputs].unique().tolist():
        if label in made or label in attached:
            reasons.setdefault(label, "a network input that is added to, or scaled with, what a layer makes")
        elif label in outside:
            reasons.setdefault(label, "a network input whose consumer's weight is read outside its own forward")


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
