"""What stays where a run cannot be followed: the groups that are fewest units, with which it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.groups.code_lines import located
from zerogate.groups.limits import MOST_RUNS_FOR_A_LOSS, STEPS_BEFORE
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.trial.replay import Divergence
from zerogate.groups.trial.sizes import labels_among
from zerogate.groups.trial.ties import channel_widths
from zerogate.groups.trial.trial import Trial
from zerogate.structure import Group, Structure


@dataclass(frozen=True)
class Loss:
    """What must stay for a run to go on past the step at which it diverged."""

    frozen: Sequence[tuple[Tensor, str]]
    """Labels, int64 [n], each with the reason."""
    units: dict[str, int]
    """How many units of each kind these are."""

    @property
    def total(self) -> int:
        return sum(self.units.values())

    def freeze(self, recording: Recording) -> None:
        """Freezes the labels."""
        for labels, reason in self.frozen:
            recording.labels.freeze(labels, reason)


def smallest_loss(trial: Trial, structure: Structure, kept: Tensor, divergence: Divergence) -> Loss:
    """The groups that must stay whole for the run with these units, bool [units], to go on past the step at which it
    diverged: of those that were tried, a set of which none can be left out, with as few units as possible.

    What plays the same part wherever that line runs is lost with them.
    """
    recording = trial.recording
    at = min(divergence.step, len(recording.steps) - 1)
    step = recording.steps[at]
    groups = _Search(trial, structure, kept, divergence).smallest()
    labels = torch.isin(_groups_of(structure), torch.tensor(sorted(groups))).nonzero().flatten()
    frozen = [(labels, located(divergence.reason, step.module, step.place))]
    frozen += [
        (others, located(divergence.reason, recording.steps[i].module, recording.steps[i].place))
        for i, others in _alike(recording, structure, at, groups)
    ]
    lost = structure.unit_of[torch.cat([labels for labels, _ in frozen])].unique()
    lost_groups = structure.group_of_unit[lost[lost >= 0]].unique().tolist()
    return Loss(frozen, units_by_kind([structure.groups[g] for g in lost_groups]))


class _Search:
    """Looks for the groups without which a run diverges at a step, and with all of which it goes on."""

    def __init__(self, trial: Trial, structure: Structure, kept: Tensor, divergence: Divergence) -> None:
        self._trial, self._structure, self._kept, self._divergence = trial, structure, kept, divergence
        self._runs = 0

    def smallest(self) -> set[int]:
        """The numbers of the groups."""
        pool = next((near for near in self._near() if self._goes_on(near)), set(range(len(self._structure.groups))))
        order = sorted(pool, key=lambda g: (-self._structure.groups[g].units, g))
        return self._without(pool, order) if len(pool) > 1 else pool

    def _near(self) -> Iterator[set[int]]:
        """The groups in what the step works on and makes, and in what its module was given; then those around it, too."""
        recording = self._trial.recording
        at = min(self._divergence.step, len(recording.steps) - 1)
        step = recording.steps[at]
        given = labels_among(recording.module_inputs.get(step.module, []))
        own = groups_in(self._structure, torch.cat([_own_labels(step), given]))
        if own:
            yield own
        around = [s for s in recording.steps if s.module == step.module] + recording.steps[
            max(0, at - STEPS_BEFORE) : at
        ]
        wider = own | groups_in(self._structure, labels_among(*(labels for s in around for labels in _tensors(s))))
        if wider != own:
            yield wider

    def _without(self, needed: set[int], chunk: Sequence[int]) -> set[int]:
        """What is still needed once as much of the chunk as possible is left out of it, by halves."""
        fewer = needed.difference(chunk)
        if fewer and self._goes_on(fewer):
            return fewer
        if len(chunk) == 1 or self._runs >= MOST_RUNS_FOR_A_LOSS:
            return needed
        half = (len(chunk) + 1) // 2
        return self._without(self._without(needed, chunk[:half]), chunk[half:])

    def _goes_on(self, groups: set[int]) -> bool:
        """Whether a run in which these groups stay whole gets past the step."""
        self._runs += 1
        whole = self._kept | torch.isin(self._structure.group_of_unit, torch.tensor(sorted(groups)))
        further = None if whole.all() else self._trial.run(self._structure, whole)
        return further is None or further.step > self._divergence.step


def units_by_kind(groups: Iterable[Group]) -> dict[str, int]:
    """How many units of each kind these groups have."""
    units: dict[str, int] = {}
    for group in groups:
        units[group.kind] = units.get(group.kind, 0) + group.units
    return units


def groups_in(structure: Structure, labels: Tensor) -> set[int]:
    """Numbers of the groups among these labels."""
    units = structure.unit_of[labels]
    return set(structure.group_of_unit[units[units >= 0]].tolist())


def _groups_of(structure: Structure) -> Tensor:
    """The number of each label's group, int64 [labels]; −1 for those that stay."""
    return torch.where(structure.unit_of >= 0, structure.group_of_unit[structure.unit_of], -1)


def _own_labels(step: Step) -> Tensor:
    return labels_among(step.entering, [results for _, results in step.outs])


def _tensors(step: Step) -> list[Tensor]:
    """Labels of each tensor that a step works on or makes."""
    return [labels_among(labels) for labels in (*step.entering, *(results for _, results in step.outs))]


def _alike(recording: Recording, structure: Structure, at: int, groups: set[int]) -> Iterator[tuple[int, Tensor]]:
    """Other steps at which the line of a step runs, and the labels that play the part there that the groups play here: they
    are in the same tensor of a step that is as far away."""
    steps = recording.steps
    others = [i for i, s in enumerate(steps) if i != at and _runs_the_same_line(s, steps[at])]
    if not others:
        return
    parts = list(_parts(recording, structure, at, groups))
    for i in others:
        labels = [
            _tensors(steps[i + offset])[tensor]
            for offset, tensor in parts
            if 0 <= i + offset < len(steps)
            and steps[i + offset].name == steps[at + offset].name
            and len(_tensors(steps[i + offset])) > tensor
        ]
        if labels:
            yield i, torch.cat(labels)


def _parts(recording: Recording, structure: Structure, at: int, groups: set[int]) -> Iterator[tuple[int, int]]:
    """For each group the nearest tensor that holds it and no other than these: how many steps behind the step, and which
    tensor there."""
    missing = set(groups)
    for offset in sorted(range(-at, len(recording.steps) - at), key=abs):
        if not missing or abs(offset) > len(recording.steps):
            return
        for tensor, labels in enumerate(_tensors(recording.steps[at + offset])):
            held = groups_in(structure, labels)
            if held & missing and held <= groups:
                missing -= held
                yield offset, tensor


def _runs_the_same_line(other: Step, step: Step) -> bool:
    """Whether a step is the same relayout or slice on the same line of code, of channels of the same widths."""
    return (
        bool(other.place[1])
        and other.place == step.place
        and other.name == step.name
        and other.spec.is_move
        and channel_widths(other) == channel_widths(step)
    )
