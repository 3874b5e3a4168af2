"""Soft masks against the paper's closed forms and finite differences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Literal

import pytest
import torch

import zerogate as zg
from zerogate.gates.schedules import Scheduled


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("beta", [1.0, 17.0, 200.0])
@pytest.mark.parametrize("s0", [-0.1, 0.0, 0.3])
def test_soft_mask_follows_the_formula(beta: float, s0: float) -> None:
    gate = zg.SoftMask(initial_value=s0)
    gate.temperature.fill_(beta)
    s = [-0.5, -0.02, -1e-4, 0.0, 1e-4, 0.013, 0.4]
    logits = torch.tensor(s)
    scale = 1 / sigmoid(s0)
    torch.testing.assert_close(
        gate.sample(logits), torch.tensor([sigmoid(beta * x) * scale for x in s]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        gate.open_probability(logits), torch.tensor([sigmoid(beta * x) for x in s]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(gate.mask(logits), torch.tensor([scale * (x > 0) for x in s]), atol=1e-6, rtol=0)


def test_soft_mask_leaves_the_network_unchanged_at_the_start() -> None:
    gate = zg.SoftMask(initial_value=-0.1)
    torch.testing.assert_close(gate.sample(gate.initial_logits(3)), torch.ones(3))


def test_soft_mask_temperature_grows_geometrically_and_is_kept_in_checkpoints() -> None:
    gate = zg.SoftMask(final_temperature=200.0, steps=10)
    seen = [gate.temperature.item()]
    for _ in range(10):
        gate.step()
        seen.append(gate.temperature.item())
    assert seen == pytest.approx([200 ** (t / 10) for t in range(11)], rel=1e-6)
    gate.step()
    assert gate.temperature.item() == 200
    other = zg.SoftMask()
    half = zg.SoftMask(steps=10)
    for _ in range(5):
        half.step()
    other.load_state_dict(half.state_dict())
    assert other.temperature.item() == half.temperature.item()
    other.step()
    assert other.temperature.item() == pytest.approx(200**0.6)


def test_soft_mask_without_steps_says_so_once() -> None:
    gate = zg.SoftMask()
    with pytest.warns(UserWarning, match=r"SoftMask\(steps="):
        gate.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gate.step()


@pytest.mark.parametrize("beta", [1.0, 17.0, 200.0])
def test_gradients_of_soft_masks_are_the_differences_of_their_values(beta: float) -> None:
    torch.manual_seed(1)
    soft = zg.SoftMask()
    soft.temperature = soft.temperature.double().fill_(beta)
    s = (torch.randn(6, dtype=torch.float64) / beta).requires_grad_()
    assert torch.autograd.gradcheck(soft.sample, s)
    assert torch.autograd.gradcheck(soft.open_probability, s)


def test_soft_mask_is_told_how_long_the_run_is() -> None:
    gate = zg.SoftMask()
    assert isinstance(gate, Scheduled)
    assert not isinstance(zg.HardConcrete(), Scheduled)
    assert gate.steps is None
    gate.set_steps(4)
    assert gate.steps == 4
    for _ in range(4):
        gate.step()
    assert gate.temperature.item() == 200
    gate.restart()
    assert (gate.temperature.item(), gate.steps_done) == (1.0, 0)


@pytest.mark.parametrize(("reset", "of_s"), [("paper", lambda s, beta: beta * s), ("code", lambda s, beta: s)])
def test_soft_masks_start_another_round_from_the_smaller_of_two(
    reset: Literal["paper", "code"], of_s: Callable[[float, float], float]
) -> None:
    gate = zg.SoftMask(initial_value=-0.05)
    gate.temperature.fill_(8.0)
    s = [-0.4, -0.01, 0.0, 0.3]
    restarted = gate.restarted(torch.tensor(s), gate.initial_logits(4), reset)
    torch.testing.assert_close(restarted, torch.tensor([min(of_s(x, 8.0), -0.05) for x in s]))


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: zg.SoftMask(final_temperature=0.0), "0.0"),
        (lambda: zg.SoftMask(final_temperature=math.inf), "inf"),
        (lambda: zg.SoftMask(initial_value=math.nan), "nan"),
        (lambda: zg.SoftMask(initial_value=-51), "-51"),
        (lambda: zg.SoftMask(steps=0), "0"),
        (lambda: zg.SoftMask().set_steps(0), "0"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], value: str) -> None:
    with pytest.raises(zg.ZerogateError, match=f"got '?{value}"):
        make()
