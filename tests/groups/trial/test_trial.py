"""Trial runs: what they leave alone, and the sizes that they promise."""

from __future__ import annotations

import torch
from torch import nn

from hand_made import Chain
from zerogate.groups.recording.record_run import watch
from zerogate.groups.recording.twin import twin_of
from zerogate.groups.trial.trial import Trial
from zerogate.groups.units import UnitFilter


def test_a_trial_leaves_its_model_as_it_was() -> None:
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 5)
    recording = watch(model, x)
    trial = Trial(recording.twin or twin_of(model, meta=False), x, recording, UnitFilter())
    structure = trial.find_units()
    kept = torch.arange(8) < 3
    before = [(name, id(p), p.shape) for name, p in trial.model.named_parameters()]
    assert trial.run(structure, kept) is None and trial.run(structure, ~kept) is None
    assert [(name, id(p), p.shape) for name, p in trial.model.named_parameters()] == before


def test_sizes_follow_the_units_that_stay() -> None:
    chain = Chain(4, 3, 2)
    trial = Trial(nn.Module(), torch.empty(0), chain.recording, UnitFilter())
    structure = trial.find_units()
    sizes = trial.sizes(structure, torch.tensor([True, False, False, True, True, True, False]))
    assert sizes.count(chain.made[0][:, None]) == 2
    assert sizes.count(chain.made[1][:, None]) == 2
    assert sizes.count(chain.made[2][:, None]) == 2  # an output: all of it stays
