"""Budgets: shares, counts, what is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.objectives.budget import Budget


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("over", ["params", "macs", "gates"])
def test_what_is_left_is_what_compaction_leaves(over: str) -> None:
    sparse = zg.sparsify(network(), torch.randn(2, 4), gate=zg.Random(1.0))
    budget = Budget.of_share(over, sparse.cost_model, 0.5)  # type: ignore[arg-type]
    is_open = torch.arange(8) < 3
    sparse.gates.set_open(is_open)
    counts = {"params": 3 * 4 + 3 + 3 * 3 + 3, "macs": 3 * 4 + 3 * 3, "gates": 3}
    dense = {"params": 8 * 4 + 8 + 8 * 3 + 3, "macs": 8 * 4 + 8 * 3, "gates": 8}
    assert budget.left(is_open) == counts[over] and budget.dense == dense[over] and budget.limit == dense[over] / 2
    if over == "params":
        assert counts[over] == sum(p.numel() for p in sparse.compact().parameters())


def test_a_share_and_a_count_are_two_ways_to_say_one_budget() -> None:
    sparse = zg.sparsify(network(), torch.randn(2, 4))
    count = Budget.of_count("params", sparse.cost_model, 20)
    assert (count.limit, count.share) == (20, 20 / 67)
    assert count.at(0.25).limit == 67 / 4


def test_a_budget_that_nothing_meets_says_what_can_be_met() -> None:
    sparse = zg.sparsify(network(), torch.randn(2, 4))
    with pytest.raises(zg.ZerogateError, match=r"params=0.1 cannot be reached: 11 of 67 .* smallest share is 0.1642"):
        Budget.of_share("params", sparse.cost_model, 0.1).check_reachable()
