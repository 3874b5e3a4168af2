"""Pruners choose units from scores, and touch nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import zerogate as zg
from zerogate.structure import Group

GROUPS = [Group("a", slice(0, 4), (), ()), Group("b", slice(4, 12), (), ())]
SCORES = torch.tensor([0.1, 0.9, 0.8, 0.3, 9.0, 5.0, 8.0, 1.0, 2.0, 3.0, 4.0, 6.0])
ALL = torch.ones(12, dtype=torch.bool)


class HalfOf:
    """A budget in which every unit costs one."""

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def at(self, share: float) -> HalfOf:
        return HalfOf(share)

    def largest(self, order: Tensor) -> int:
        return int(self.share * len(order))


def test_all_units_are_ranked_together_or_each_group_by_itself() -> None:
    globally = zg.Magnitude(0.5).pruned_to(0.5, SCORES, ALL, GROUPS, None)
    assert globally.nonzero().flatten().tolist() == [4, 5, 6, 9, 10, 11]
    by_layer = zg.Magnitude(0.5, scope="layer").pruned_to(0.5, SCORES, ALL, GROUPS, None)
    assert by_layer.nonzero().flatten().tolist() == [1, 2, 4, 5, 6, 11]


def test_a_closed_unit_never_opens_again() -> None:
    is_open = ALL.clone()
    is_open[4:] = False
    assert zg.Magnitude(0.5).pruned_to(0.9, SCORES, is_open, GROUPS, None).equal(is_open)


def test_a_budget_takes_the_place_of_the_density() -> None:
    gate = zg.Magnitude(begin=0.5, end=0.5, steps=2)
    assert gate.final_share(HalfOf(0.25)) == 0.25
    assert gate.next_open(SCORES, ALL, GROUPS, HalfOf(0.25)) is None  # before its step
    gate.step()
    assert gate.is_due
    stays = gate.next_open(SCORES, ALL, GROUPS, HalfOf(0.25))
    assert stays is not None and stays.nonzero().flatten().tolist() == [4, 6, 11]


@pytest.mark.parametrize(("density", "budget"), [(None, None), (0.5, HalfOf())])
def test_one_of_density_and_budget_is_needed(density: float | None, budget: HalfOf | None) -> None:
    with pytest.raises(zg.ZerogateError, match="density or a Target"):
        zg.Magnitude(density).check(budget)


def test_a_pruner_that_cannot_know_how_much_stays_is_refused_when_gates_are_attached() -> None:
    with pytest.raises(zg.ZerogateError, match="density or a Target"):
        zg.sparsify(
            torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.rand(1, 3), gate=zg.Magnitude()
        )


def test_random_opens_the_same_share_of_every_group_and_never_prunes() -> None:
    torch.manual_seed(0)
    gate = zg.Random(0.5)
    first = gate.first_open(GROUPS)
    assert [int(first[g.slice].sum()) for g in GROUPS] == [2, 4]
    assert gate.next_open(SCORES, first, GROUPS, None) is None and not gate.is_due
    torch.manual_seed(0)
    assert gate.first_open(GROUPS).equal(first)
