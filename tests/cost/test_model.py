"""What every model of costs says, for one of a single line."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from zerogate.cost.model import Cost, CostModel


class Linear(CostModel):
    """Every open unit costs 2 parameters and 3 MACs."""

    def __init__(self, units: int) -> None:
        self.units = units

    def formula(self, p: Tensor) -> Cost[Tensor]:
        return Cost(2 * p.sum() + 1, 3 * p.sum())

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        return is_open


def test_all_that_a_formula_gives() -> None:
    model, p = Linear(4), torch.tensor([0.5, 0.25, 0.0, 1.0])
    assert model.dense == zg.Cost(9, 12)
    assert model.exact(p > 0.3) == zg.Cost(5, 6)
    assert type(model.dense.params) is int
    expected = model.expected(p)
    assert (expected.params.item(), expected.macs.item()) == (4.5, 5.25)
    assert expected.params.dtype == torch.float64
    weighted = model.weighted(p, "macs", 0.1)
    assert weighted.item() == pytest.approx(0.525) and weighted.dtype == p.dtype


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_say_the_same(unit: str, copied: object) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    cost = zg.sparsify(model, torch.randn(1, 4), unit=unit, min_channels=2 if unit == "channel" else 1).cost_model
    p = torch.rand(cost.units)
    before = [cost.weighted(p, over, 0.3) for over in ("params", "macs")]  # makes its tables
    other = copied(cost)  # type: ignore[operator]
    assert [other.weighted(p, over, 0.3) for over in ("params", "macs")] == before
    assert other.exact(p > 0.5) == cost.exact(p > 0.5)
