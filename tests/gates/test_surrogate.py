"""Surrogate gradients against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import zerogate as zg
from zerogate.gates.surrogate import gentle_sigmoid, gentle_slope, straight_through


@pytest.mark.parametrize("slope", [1.0, 200.0])
def test_the_slope_is_no_steeper_than_the_spread_allows(slope: float) -> None:
    x = torch.tensor([-0.5, 0.1, 0.3, 1.5], dtype=torch.float64)
    k = min(slope, 2 / (2.4 / 4))
    assert gentle_slope(x, slope).item() == pytest.approx(k)
    assert gentle_slope(x, torch.tensor(slope)).item() == pytest.approx(k)
    torch.testing.assert_close(
        gentle_sigmoid(x, slope), torch.tensor([1 / (1 + math.exp(-k * v)) for v in x.tolist()], dtype=torch.float64)
    )


def test_straight_through_is_the_value_with_the_other_gradient() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    y = straight_through((x > 0).double(), x.sin())
    torch.testing.assert_close(y, (x > 0).double())
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, x.cos())


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask()])
def test_all_but_decided_gates_still_move(gate: zg.Gate) -> None:
    """At β = 200 and logits far apart the open probability's own gradient is 0; the movable one's is not."""
    if isinstance(gate, zg.SoftMask):
        gate.temperature.fill_(200.0)
    logits = torch.tensor([-120.0, -60.0, 60.0, 120.0], requires_grad=True)
    torch.testing.assert_close(gate.movable_probability(logits), gate.open_probability(logits))
    (own,) = torch.autograd.grad(gate.open_probability(logits).sum(), logits)
    (gentle,) = torch.autograd.grad(gate.movable_probability(logits).sum(), logits)
    assert own.abs().max() < 1e-20
    assert gentle.min() > 1e-4
