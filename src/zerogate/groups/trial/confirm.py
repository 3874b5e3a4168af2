"""What can really be removed: copies are cut at random and run beside the record until one is followed to its end.

Sizes written into a forward (a reshape, a split at fixed places) leave no trace in the labels. Where a run leaves the
record, the attribute that its size came from follows from then on; else what the op works on is tied to something that the
forward takes its size from; or, where that leaves more units, as few stay as must.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zerogate.groups.trial.size_attributes import find_size_attribute
from zerogate.groups.trial.sizes import labels_among
from zerogate.groups.trial.smallest_loss import smallest_loss, units_by_kind
from zerogate.groups.trial.ties import find_tie
from zerogate.groups.trial.trial import Trial, random_kept
from zerogate.structure import Structure


def confirm(trial: Trial, structure: Structure, multiple: int = 1) -> Structure:
    """The structure of what can really be removed.

    Args:
        trial: runs smaller copies.
        structure: what the labels say.
        multiple: of groups of channels, multiples of it are kept.
    """
    trial.possible = units_by_kind(structure.groups)
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
        loss = smallest_loss(trial, structure, kept, divergence)
        tied = find_tie(trial, structure, divergence, least=structure.units - loss.total)
        if tied is None:
            loss.freeze(trial.recording)
            tied = trial.find_units()
        trial.possible = {kind: n - loss.units.get(kind, 0) for kind, n in trial.possible.items()}
        trial.why_lost = trial.why_lost or loss.frozen[0][1]
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
