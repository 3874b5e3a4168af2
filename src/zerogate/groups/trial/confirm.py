"""What can really be removed: copies are cut at random and run beside the record until one is followed to its end.

Sizes written into a forward (a reshape, a split at fixed places) leave no trace in the labels. Where a run leaves the
record, the attribute that its size came from follows from then on; else what the op works on is tied to something that the
forward takes its size from; else it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.groups.code_lines import located
from zerogate.groups.limits import STEPS_BEFORE
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.trial.replay import Divergence
from zerogate.groups.trial.size_attributes import find_size_attribute
from zerogate.groups.trial.sizes import labels_among
from zerogate.groups.trial.ties import channel_widths, find_tie
from zerogate.groups.trial.trial import Trial, random_kept
from zerogate.structure import Structure


def confirm(trial: Trial, structure: Structure, multiple: int = 1) -> Structure:
    """The structure of what can really be removed.

    Args:
        trial: runs smaller copies.
        structure: what the labels say.
        multiple: of groups of channels, multiples of it are kept.
    """
    passed = 0
    generator = torch.Generator().manual_seed(0)
    while structure.units:
        trial.recording.label_moved_parameters()
        kept = random_kept(structure, generator, multiple)
        divergence = trial.run(structure, kept)
        while divergence is not None and (further := find_size_attribute(trial, structure, kept, divergence)):
            structure = trial.with_size_attributes(structure)
            divergence = None if further.step > len(trial.recording.steps) else further
        if divergence is None:
            passed += 1
            # a number may be right by chance, where it could be that of another group
            if passed > 1 or not _is_ambiguous(trial, structure, kept):
                break
            continue
        passed = 0
        tied = find_tie(trial, structure, divergence)
        if tied is None:
            _freeze_diverging(trial, structure, kept, divergence)
            tied = trial.find_units()
        structure = tied
    return structure


def _is_ambiguous(trial: Trial, structure: Structure, kept: Tensor) -> bool:
    """Whether in any module that gives sizes as numbers two groups of one size keep equally many units."""
    group = structure.group_of_unit
    counts = torch.zeros(len(structure.groups), dtype=torch.int64).index_add_(0, group, kept.long()).tolist()
    sizes = [(g.units, n) for g, n in zip(structure.groups, counts, strict=True)]
    if not _repeats(sizes):
        return False
    groups_in: dict[str, set[int]] = {}
    for step in trial.recording.steps:
        if not step.spec.is_move or not trial.arguments.of(step):
            continue
        units = structure.unit_of[labels_among(step.entering)]
        groups_in.setdefault(step.module, set()).update(group[units[units >= 0]].unique().tolist())
    return any(_repeats([sizes[g] for g in groups]) for groups in groups_in.values())


def _repeats(sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether two groups have the same size and keep the same number; those of up to two units have no choice."""
    sizes = [size for size in sizes if size[0] > 2]
    return len(set(sizes)) < len(sizes)


def _freeze_diverging(trial: Trial, structure: Structure, kept: Tensor, divergence: Divergence) -> None:
    """Freezes what the step works on, or what its module was given, or both: whatever lets the run go on if it stays whole.
    The same is frozen wherever that line runs."""
    recording, group = trial.recording, structure.group_of_unit
    step = recording.steps[min(divergence.step, len(recording.steps) - 1)]
    before = recording.steps[max(0, divergence.step - STEPS_BEFORE) : divergence.step + 1]
    for choice in _CHOICES:
        units = structure.unit_of[choice.labels(recording, step, before)]
        groups = group[units[units >= 0]].unique()
        if not len(groups):
            continue
        whole = kept | torch.isin(group, groups)
        further = None if whole.all() else trial.run(structure, whole)
        if further is None or further.step > divergence.step:
            for other in recording.steps:
                if other is step or _runs_the_same_line(other, step):
                    labels = choice.labels(recording, other, before if other is step else ())
                    recording.labels.freeze(labels, located(divergence.reason, other.module, other.place))
            return
    recording.labels.freeze((structure.unit_of >= 0).nonzero().flatten(), divergence.reason)


@dataclass(frozen=True)
class _Surroundings:
    """Whose labels are frozen where a step diverges."""

    own: bool = False
    """What the step works on and makes."""
    inputs: bool = False
    """What its module was given."""
    around: bool = False
    """What all steps of its module, and those just before it, work on and make."""

    def labels(self, recording: Recording, step: Step, before: Sequence[Step]) -> Tensor:
        """The labels, int64 [n]; ``before``: the steps just before this one."""
        labels: list[Tensor] = []
        if self.own:
            labels.append(_own_labels(step))
        if self.inputs:
            labels.append(labels_among(recording.module_inputs.get(step.module, [])))
        if self.around:
            labels += [_own_labels(s) for s in recording.steps if s.module == step.module]
            labels += [_own_labels(s) for s in before]
        return torch.cat(labels)


_CHOICES = (
    _Surroundings(own=True),
    _Surroundings(inputs=True),
    _Surroundings(own=True, inputs=True),
    _Surroundings(own=True, inputs=True, around=True),
)


def _own_labels(step: Step) -> Tensor:
    return labels_among(step.entering, [results for _, results in step.outs])


def _runs_the_same_line(other: Step, step: Step) -> bool:
    """Whether a step is the same relayout or slice on the same line of code, of channels of the same widths."""
    return (
        bool(other.place[1])
        and other.place == step.place
        and other.name == step.name
        and other.spec.is_move
        and channel_widths(other) == channel_widths(step)
    )
