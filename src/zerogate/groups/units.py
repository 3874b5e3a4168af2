"""From labels to units: which slices of which tensors belong to which unit, and which layers read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zerogate.groups.least import with_least
from zerogate.groups.recording.record import Recording
from zerogate.groups.repeats import count_repeats
from zerogate.groups.slices import make_slices_whole
from zerogate.modules.index import layer_of, owner_of
from zerogate.structure import KINDS, Axis, Group, SizeAttribute, Structure


@dataclass(frozen=True)
class UnitFilter:
    """Which units the user lets go."""

    exclude: Collection[str] = ()
    """Modules whose channels stay, coming in and going out."""
    include: Collection[str] | None = None
    """Modules that make channels which may go; None for all."""
    kinds: Collection[str] = KINDS
    """Kinds of units that may go."""
    narrowest: int = 1
    """How many channels a group keeps whatever is closed: groups that have no more have nothing to remove."""

    def keeps_all(self, group: Group) -> bool:
        """Whether nothing of a group can go, however many of its units are closed."""
        return group.units <= max(group.least, self.narrowest if group.kind == "channel" else 1)


def find_units(recording: Recording, allowed: UnitFilter) -> Structure:
    """Completes the labels of a recording, in place, and reads its units off them.

    Trials call this again after they have tied or frozen more labels.
    """
    freeze_unavailable(recording, allowed.exclude)
    make_slices_whole(recording)
    return units_of(recording, allowed)


def freeze_unavailable(recording: Recording, exclude: Collection[str]) -> None:
    """Freezes the labels on the axes of excluded modules, and of tensors that some op reads in an unknown way."""
    excluded = set(exclude)
    for (tensor, _), vector in recording.axes.items():
        if tensor in recording.constants:
            continue
        if layer_of(tensor) in excluded:
            recording.labels.freeze(vector, f"{layer_of(tensor)} is excluded")
        if tensor in recording.unfollowed:
            recording.labels.freeze(vector, recording.unfollowed[tensor])


def freeze_other_kinds(recording: Recording, structure: Structure, kind: str, reason: str) -> None:
    """Freezes the labels of all units that are of another kind than this."""
    others = torch.tensor([group.kind != kind for group in structure.groups], dtype=torch.bool)
    unit_of, group = structure.unit_of, structure.group_of_unit
    recording.labels.freeze(((unit_of >= 0) & others[group[unit_of]]).nonzero().flatten(), reason)


class _Axes:
    """All axes of a recording one after another, with the class of labels at each index."""

    def __init__(self, recording: Recording) -> None:
        self.root = recording.labels.roots()
        """The class of each label, int64 [labels]; a class is called by its smallest label, 0 stays."""
        vectors = {axis: vector for axis, vector in recording.axes.items() if axis[0] not in recording.constants}
        self.names = list(vectors)
        self.lengths = [len(v) for v in vectors.values()]
        self.number = torch.repeat_interleave(
            torch.arange(len(self.names)), torch.tensor(self.lengths, dtype=torch.int64)
        )
        """Number of the axis at each index, int64 [all]."""
        self.classes = self.root[torch.cat([*vectors.values(), torch.empty(0, dtype=torch.int64)])]
        """Class at each index, int64 [all]."""
        self.is_head = self.marked(self.root[torch.cat([*recording.head_labels, torch.zeros(1, dtype=torch.int64)])])
        """Which classes are heads of attention, bool [labels]."""
        self.consumed = {c.consumes for c in recording.calls if c.consumes}
        """Axes along which a layer reads channels."""
        self.produced = {c.produces for c in recording.calls if c.produces} | recording.parameter_sources
        """Axes along which a layer, or a parameter by itself, makes channels."""

    def split(self, values: Tensor) -> dict[Axis, Tensor]:
        """Values [all] by axis."""
        return dict(zip(self.names, values.split(self.lengths), strict=True)) if self.names else {}

    def marked(self, classes: Tensor) -> Tensor:
        """Which classes are among these, bool [labels]."""
        return torch.zeros(len(self.root), dtype=torch.bool).index_fill_(0, classes, True)

    def on(self, chosen: list[bool]) -> Tensor:
        """Which classes lie on any of the chosen axes, bool [labels]; ``chosen``: for each axis."""
        return self.marked(self.classes[torch.tensor(chosen, dtype=torch.bool)[self.number]])


def units_of(recording: Recording, allowed: UnitFilter) -> Structure:
    """The units, groups and refusals that the labels of a recording state; changes nothing."""
    axes = _Axes(recording)
    why, reasons = _reasons_to_stay(recording, axes, allowed)
    free = why < 0
    free[0] = False
    groups, unit_of = _group(axes, free, recording)
    if any(map(allowed.keeps_all, groups)):
        _keep_whole_groups(groups, unit_of, allowed, free, why, reasons)
        groups, unit_of = _group(axes, free, recording)
    inputs = frozenset(unit_of[axes.root[recording.inputs]].tolist()) - {-1}
    units = unit_of[axes.classes]
    remain = set(axes.number[units >= 0].unique_consecutive().tolist())
    unit_axes = {axis: u for i, (axis, u) in enumerate(axes.split(units).items()) if i in remain}
    unit_of = unit_of[axes.root]
    owners = {owner_of(name) for name, _ in unit_axes}
    norms = (replace(n, labels=unit_of[n.labels]) for n in recording.norms)
    return Structure(
        axes=unit_axes,
        groups=tuple(groups),
        calls=tuple(count_repeats(recording, unit_of)),
        inputs=inputs,
        refused=_refusals(recording, axes, why, reasons),
        norms=tuple(n for n in norms if (n.labels >= 0).any()),
        size_attributes=size_attributes_of(recording, unit_of),
        attention={path: called for path, called in recording.attention.items() if path in owners},
        reasons=dict(recording.unfollowed),
        unit_of=unit_of,
        places=recording.places,
        sizes={axis: len(vector) for axis, vector in recording.axes.items()},
        set_by_forward=frozenset(recording.set_by_forward),
    )


def size_attributes_of(recording: Recording, unit_of: Tensor) -> tuple[SizeAttribute, ...]:
    """The size attributes that any unit changes, with units in place of labels."""
    attributes = (replace(a, rows=unit_of[a.rows]) for a in recording.size_attributes.values())
    return tuple(a for a in attributes if (a.rows >= 0).any())


def _reasons_to_stay(recording: Recording, axes: _Axes, allowed: UnitFilter) -> tuple[Tensor, list[str]]:
    """For each class the number of the reason why it stays, int64 [labels], −1 for those that may go; and the reasons.

    A class that stays for several reasons has the first: what the run showed, then network inputs that cannot be selected,
    then what nobody consumes or the user does not let go.
    """
    why, reasons = recording.labels.reasons()
    _keep_tied_inputs(recording, axes, why, reasons)
    free = why < 0
    free[0] = False
    none = torch.zeros(len(axes.root), dtype=torch.bool)
    included = ~none
    if allowed.include is not None:
        included = axes.on([a in axes.produced and layer_of(a[0]) in allowed.include for a in axes.names])
    present, is_head = axes.marked(axes.classes), axes.is_head
    for reason, stays in (
        ("no layer consumes it", ~axes.on([a in axes.consumed for a in axes.names])),
        (
            "no layer makes it",
            ~axes.on([a in axes.produced for a in axes.names]) & ~axes.marked(axes.root[recording.inputs]),
        ),
        ("not among the included layers", ~included),
        ('its units are heads, which unit="head" gates', is_head if "head" not in allowed.kinds else none),
        ('its units are channels, which unit="channel" gates', ~is_head if "channel" not in allowed.kinds else none),
    ):
        stays = stays & free & present
        why[stays] = len(reasons)
        reasons.append(reason)
        free &= ~stays
    return why, reasons


def _keep_whole_groups(
    groups: Sequence[Group], unit_of: Tensor, allowed: UnitFilter, free: Tensor, why: Tensor, reasons: list[str]
) -> None:
    """Enters reasons for groups of which all units are kept: a gate could remove nothing there but what feeds it."""
    for group in filter(allowed.keeps_all, groups):
        members = (unit_of >= group.slice.start) & (unit_of < group.slice.stop)
        free[members], why[members] = False, len(reasons)
        reasons.append(
            "a single unit, without which nothing would be left"
            if group.units == 1
            else f"a group of {group.units} units, all of which their layer needs to stay what it is"
            if group.units <= group.least
            else f"a group of {group.units} channels, all of which min_channels and round_to keep"
        )


def _keep_tied_inputs(recording: Recording, axes: _Axes, why: Tensor, reasons: list[str]) -> None:
    """Enters reasons for network inputs that stay: they can be selected only in front of a layer that is called as a module
    and tied to nothing else."""
    if not len(recording.inputs):
        return
    by_axis = axes.split(axes.classes)
    consumed = {c.consumes for c in recording.calls}
    produced = {label for axis in axes.produced for label in by_axis[axis].tolist()}
    attached = {label for axis, vector in by_axis.items() if axis not in consumed for label in vector.tolist()}
    outside, recurrent = (
        {label for c in recording.calls if c.consumes and chosen(c) for label in by_axis[c.consumes].tolist()}
        for chosen in (lambda c: c.host != c.layer, lambda c: c.recurrent)
    )
    stays = (why >= 0).tolist()
    number = len(reasons)
    reasons += [
        "a network input that is added to, or scaled with, what a layer makes",
        "a network input whose consumer's weight is read outside its own forward",
        "a network input that a recurrent layer reads",
    ]
    for label in axes.root[recording.inputs].unique().tolist():
        tied = label in produced or label in attached
        if not stays[label] and (tied or label in outside or label in recurrent):
            why[label] = number if tied else number + 1 if label in outside else number + 2


def _refusals(recording: Recording, axes: _Axes, why: Tensor, reasons: list[str]) -> dict[Axis, str]:
    """For every axis on which classes stay, other than network inputs, the reason of the first of them."""
    stays = why >= 0
    stays[0] = False
    here = stays[axes.classes]
    first = torch.full((len(axes.names),), len(axes.root))
    first = first.scatter_reduce(0, axes.number[here], axes.classes[here], "amin")
    if len(recording.inputs):
        stays[axes.root[recording.inputs]] = False
    numbers = axes.number[stays[axes.classes]].unique_consecutive()
    return {axes.names[i]: reasons[j] for i, j in zip(numbers.tolist(), why[first[numbers]].tolist(), strict=True)}


def _group(axes: _Axes, free: Tensor, recording: Recording) -> tuple[list[Group], Tensor]:
    """Groups of classes that lie on the same axes equally often, and the unit of each class, −1 for those that stay.

    Args:
        axes: where the classes lie.
        free: which of them may go, bool [labels].
        recording: says how many must stay.
    """
    inside = free[axes.classes]
    number, classes = axes.number[inside], axes.classes[inside]
    parts = _alike(number, classes, len(axes.names), axes.is_head)
    axes_of_first = _axes_of([int(part[0]) for part in parts], number, classes, len(free))
    groups: list[Group] = []
    unit_of = torch.full((len(free),), -1)
    uses_of_name: dict[str, int] = defaultdict(int)
    start = 0
    for members in sorted(parts, key=lambda part: int(part[0])):
        first = int(members[0])
        own = [axes.names[i] for i in axes_of_first[first]]
        producers = _unique(layer_of(a[0]) for a in own if a in axes.produced)
        consumers = _unique(layer_of(a[0]) for a in own if a in axes.consumed)
        name = producers[0] if producers else "input"
        uses_of_name[name] += 1
        if uses_of_name[name] > 1:
            name = f"{name}#{uses_of_name[name]}"
        stop = start + len(members)
        kind = "head" if axes.is_head[first] else "channel"
        groups.append(Group(name, slice(start, stop), producers, consumers, kind))
        unit_of[members] = torch.arange(start, stop)
        start = stop
    return with_least(groups, [(unit_of[axes.root[labels]], n) for labels, n in recording.at_least]), unit_of


def _alike(number: Tensor, classes: Tensor, axes: int, is_head: Tensor) -> list[Tensor]:
    """Classes in parts that lie on the same axes equally often and are all heads or none: class ``classes[i]`` lies on
    axis ``number[i]`` of so many ``axes``."""
    # a class's axes, as a sum of random numbers: alike only where they are the same
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(2**62), 2**62, (axes,), generator=generator)
    signature = torch.zeros(len(is_head), dtype=torch.int64).index_add_(0, classes, random[number]) + is_head
    distinct = torch.zeros(len(is_head), dtype=torch.bool).index_fill_(0, classes, True).nonzero().flatten()
    if not len(distinct):
        return []
    _, which = signature[distinct].unique(return_inverse=True)
    return list(distinct[which.argsort(stable=True)].split(which.bincount().tolist()))


def _axes_of(chosen: list[int], number: Tensor, classes: Tensor, labels: int) -> dict[int, list[int]]:
    """Chosen class → the numbers of the axes on which it lies, each once, in order."""
    is_chosen = torch.zeros(labels, dtype=torch.bool)
    is_chosen[chosen] = True
    here = is_chosen[classes]
    numbers: dict[int, dict[int, None]] = {label: {} for label in chosen}
    for label, axis in zip(classes[here].tolist(), number[here].tolist(), strict=True):
        numbers[label][axis] = None
    return {label: list(own) for label, own in numbers.items()}


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
