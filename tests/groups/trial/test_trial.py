"""Which units trials keep, and that copies of one model share what is cut."""

from __future__ import annotations

import torch
from torch import nn

from hand_made import Chain
from zerogate.groups.recording.record_run import watch
from zerogate.groups.recording.twin import twin_of
from zerogate.groups.trial.trial import Trial, random_kept
from zerogate.groups.units import UnitFilter, find_units
from zerogate.structure import Structure


def structure_of(*sizes: int) -> Structure:
    return find_units(Chain(*sizes, 2).recording, UnitFilter())


def counts(structure: Structure, multiple: int = 1, seed: int = 0) -> list[int]:
    kept = random_kept(structure, torch.Generator().manual_seed(seed), multiple)
    return [int(kept[g.slice].sum()) for g in structure.groups]


def test_groups_of_one_size_keep_different_numbers() -> None:
    assert counts(structure_of(8, 8, 8, 8)) == [4, 5, 3, 6]
    assert counts(structure_of(8, 6, 8)) == [4, 3, 5]


def test_no_group_is_left_empty_or_whole() -> None:
    structure = structure_of(2, 2, 3, 3, 3, 40)
    for seed in range(20):
        left = counts(structure, seed=seed)
        assert all(0 < n < g.units for n, g in zip(left, structure.groups, strict=True))


def test_which_units_stay_is_random() -> None:
    structure = structure_of(40)
    kept = [random_kept(structure, torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert not torch.equal(*kept)


def test_widths_are_multiples_where_that_is_not_all() -> None:
    assert counts(structure_of(32, 12, 9, 5, 3), 8) == [16, 8, 8, 5, 3]
    assert all(n % 4 == 0 for n in counts(structure_of(32, 32, 16, 20, 12), 4))


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
