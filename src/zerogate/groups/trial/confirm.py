"""What can really be removed: copies are cut at random and run beside the record until one is followed to its end.

Sizes written into a forward (a reshape, a split at fixed places) leave no trace in the labels. Where a run leaves the
record, the attribute that its size came from follows from then on; else what the op works on is tied to something that the
forward takes its size from; or, where that leaves more units, as few stay as must.
"""

from __future__ import annotations

import torch

from zerogate.groups.limits import MOST_RUNS_PASSED
from zerogate.groups.trial.size_attributes import find_size_attribute
from zerogate.groups.trial.smallest_loss import smallest_loss, units_by_kind
from zerogate.groups.trial.ties import find_tie
from zerogate.groups.trial.trial import Trial
from zerogate.structure import Structure


def confirm(trial: Trial, structure: Structure, multiple: int = 1) -> Structure:
    """The structure of what can really be removed.

    Args:
        trial: runs smaller copies.
        structure: what the labels say.
        multiple: of groups of channels, multiples of it are kept.
    """
    trial.possible = units_by_kind(structure.groups)
    passed, widths = 0, None
    generator = torch.Generator().manual_seed(0)
    while structure.units:
        trial.recording.label_moved_parameters()
        if widths is None:
            passed, widths = 0, trial.widths(structure, multiple)
        kept = widths.draw(generator, again=passed > 0)
        divergence = trial.run(structure, kept)
        while divergence is not None and (further := find_size_attribute(trial, structure, kept, divergence)):
            structure = trial.with_size_attributes(structure)
            divergence = None if further.step > len(trial.recording.steps) else further
        if divergence is None:
            passed += 1
            widths.settle(kept)
            if not widths.undecided or passed >= MOST_RUNS_PASSED:
                break
            continue
        loss = smallest_loss(trial, structure, kept, divergence)
        tied = find_tie(trial, structure, divergence, least=structure.units - loss.total)
        if tied is None:
            loss.freeze(trial.recording)
            tied = trial.find_units()
        trial.possible = {kind: n - loss.units.get(kind, 0) for kind, n in trial.possible.items()}
        trial.why_lost = trial.why_lost or loss.frozen[0][1]
        structure, widths = tied, None
    return structure
