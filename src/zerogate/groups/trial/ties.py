"""Ties that make a size right: where a size counts something else already, both must lose the same places."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zerogate.groups.arguments import tensors_among
from zerogate.groups.label_tensors import collapse, drop_expanded, labels_in, varying_dims
from zerogate.groups.limits import SEEDS_OF_A_TIE
from zerogate.groups.recording.record import Step
from zerogate.groups.trial.candidates import attributes_equal_to, modules_near
from zerogate.groups.trial.replay import Divergence
from zerogate.groups.trial.size_attributes import find_size_attribute, steps_alike
from zerogate.groups.trial.sizes import labels_among
from zerogate.groups.trial.trial import Trial
from zerogate.modules.held_numbers import Entry
from zerogate.structure import Structure

Place = tuple[int, str, Entry]
"""A number near a step: how far from its module (see `modules_near`), the attribute, and where in it."""


def find_tie(trial: Trial, structure: Structure, divergence: Divergence, least: int = 1) -> Structure | None:
    """Ties what a diverging step works on to something else, place by place, where that lets the run go on past it.

    Either to what an attribute counts already: a number of heads that is used for two things goes on being right if both
    always lose the same places. Or to what its module was given: ``B, N, C = x.shape; … .reshape(B, N, C)`` gives the
    result the width of the input.

    Returns the units with the tie, which is entered in the recording; None where there is no such tie that leaves at least
    ``least`` units.
    """
    recording = trial.recording
    if divergence.step >= len(recording.steps):
        return None
    step = recording.steps[divergence.step]
    line = step.place, f"tie {channel_widths(step)}"
    if line in trial.in_vain:
        return None
    alike = [s for s in steps_alike(recording, step) if channel_widths(s) == channel_widths(step)]
    state, size_attributes = recording.labels.state(), dict(recording.size_attributes)
    for place in [*dict.fromkeys(place for place, _, _ in _counted(trial, step)), None]:
        changes = recording.labels.changes
        for other in alike:
            if place is None:
                _tie_to_inputs(trial, structure, other)
            else:
                _tie_to_attribute(trial, other, place)
        if recording.labels.changes != changes:
            tied = _try(trial, step, divergence, least)
            if tied is not None:
                return tied
        recording.labels.restore(state)
        recording.size_attributes = dict(size_attributes)
    trial.in_vain.add(line)
    return None


def channel_widths(step: Step) -> list[tuple[int, ...]]:
    """The sizes of what a step works on, along the dimensions of its channels; the same in blocks of one width."""
    return [tuple(x.shape[d] for d in varying_dims(collapse(x))) for x in step.entering]


def _try(trial: Trial, step: Step, divergence: Divergence, least: int) -> Structure | None:
    """The units with the labels as they are tied now, if these are so many and a run with them goes on past the step."""
    tied = trial.find_units()
    trial.recording.label_moved_parameters()
    labels = labels_among(step.entering, [results for _, results in step.outs])
    if tied.units < max(least, 1) or not (tied.unit_of[labels] >= 0).any():
        return None
    widths = trial.widths(tied)
    for seed in SEEDS_OF_A_TIE:
        kept = widths.draw(torch.Generator().manual_seed(seed))
        further = trial.run(tied, kept)
        if further is None or further.step >= divergence.step:
            break
    while further is not None and further.step <= divergence.step:
        at = trial.recording.steps[further.step]
        trial.in_vain.discard((at.place, at.name))
        found = find_size_attribute(trial, tied, kept, further)
        if found is None:
            break
        tied, further = trial.with_size_attributes(tied), found
    if further is None or further.step > divergence.step:
        return trial.with_size_attributes(tied)
    return None


def _counted(trial: Trial, step: Step) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Attributes near a step that have a size that it was given but count something else already, with the rows of labels
    that the step's size counts and those that the attribute counts."""
    for size in trial.arguments.of(step):
        for distance, path in enumerate(modules_near(step.module, trial.modules)):
            for attribute, entry in attributes_equal_to(size.size, trial.modules.get(path)):
                known = trial.recording.size_attributes.get((path, attribute, entry))
                if known is not None and len(known.rows) == len(size.rows) and not torch.equal(known.rows, size.rows):
                    yield (distance, attribute, entry), size.rows, known.rows


def _tie_to_attribute(trial: Trial, step: Step, place: Place) -> None:
    """Ties what a step's size counts to what the attribute at this place counts, row by row."""
    for candidate, own, counted in _counted(trial, step):
        if candidate == place:
            trial.recording.labels.unite(own.amax(1), counted.amax(1))


def _tie_to_inputs(trial: Trial, structure: Structure, step: Step) -> None:
    """Ties what a step works on and makes to what its module was given, wherever all of that can go."""
    for own in tensors_among([step.entering, [results for _, results in step.outs]]):
        for entering in trial.recording.module_inputs.get(step.module, ()):
            if (structure.unit_of[labels_in(entering)] >= 0).all():
                _tie_places(trial, own, entering)


def _tie_places(trial: Trial, own: Tensor, entering: Tensor) -> None:
    """Ties labels to those of an input that varies along one dimension, place by place, as often as they fit in."""
    (own,), (entering,) = drop_expanded(own), drop_expanded(entering)
    n = entering.numel()
    if n > 1 and own.numel() % n == 0 and sum(size > 1 for size in entering.shape) == 1:
        trial.recording.labels.unite(own.reshape(-1, n), entering.reshape(1, -1))
