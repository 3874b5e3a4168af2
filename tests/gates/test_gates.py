"""Gates against the papers' closed forms, a million samples and finite differences."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import zerogate as zg

LOG_ALPHA = [-6.0, -2.398, -1.0, 0.0, 0.7, 2.5, 6.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def hard_concrete(u: float, a: float, beta: float = 2 / 3, low: float = -0.1, high: float = 1.1) -> float:
    """Equations 10 and 11 of the paper, in Python floats."""
    s = sigmoid((math.log(u) - math.log(1 - u) + a) / beta)
    return min(1.0, max(0.0, s * (high - low) + low))


@pytest.mark.parametrize("a", LOG_ALPHA)
def test_hard_concrete_draws_follow_the_formula(a: float) -> None:
    u = torch.tensor([0.001, 0.03, 0.2, 0.5, 0.77, 0.95, 0.999]).tolist()  # as float32 holds them
    drawn = zg.HardConcrete().quantile(torch.tensor(u), torch.full((len(u),), a))
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, torch.tensor([hard_concrete(x, a) for x in u]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("a", LOG_ALPHA)
@pytest.mark.parametrize(("beta", "low", "high"), [(2 / 3, -0.1, 1.1), (0.4, -0.3, 1.5)])
def test_hard_concrete_probabilities_follow_the_formula(a: float, beta: float, low: float, high: float) -> None:
    gate = zg.HardConcrete(temperature=beta, low=low, high=high)
    logits = torch.tensor([a])
    assert gate.open_probability(logits).item() == pytest.approx(sigmoid(a - beta * math.log(-low / high)), abs=1e-6)
    for x in (0.0, 0.25, 0.5, 0.9):
        unit = (x - low) / (high - low)
        expected = sigmoid(beta * math.log(unit / (1 - unit)) - a)
        assert gate.cdf(x, logits).item() == pytest.approx(expected, abs=1e-6)
    assert gate.cdf(0.0, logits).item() == pytest.approx(1 - gate.open_probability(logits).item(), abs=1e-6)
    assert gate.cdf(-0.01, logits).item() == 0
    assert gate.cdf(1.0, logits).item() == 1
    mask = min(1.0, max(0.0, sigmoid(a) * (high - low) + low))
    assert gate.mask(logits).item() == pytest.approx(mask, abs=1e-6)


@pytest.mark.parametrize("a", [-2.0, 0.0, 1.5])
def test_hard_concrete_agrees_with_a_million_samples(a: float) -> None:
    torch.manual_seed(0)
    gate, n = zg.HardConcrete(), 1_000_000
    z = gate.sample(torch.full((n,), a))

    def close(share: Tensor, probability: Tensor) -> None:
        p = probability.item()
        assert abs(share.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / n)  # five standard errors

    logits = torch.tensor([a])
    close(z != 0, gate.open_probability(logits))
    for x in (0.0, 0.1, 0.5, 0.99):
        close(z <= x, gate.cdf(x, logits))
    assert z.min() >= 0
    assert z.max() <= 1


def test_hard_concrete_per_example_draws_differ_and_share_logits() -> None:
    z = zg.HardConcrete().sample(torch.zeros(50), 4)
    assert z.shape == (4, 50)
    assert not torch.equal(z[0], z[1])


def test_hard_concrete_survives_the_ends_of_the_uniform_distribution() -> None:
    logits = torch.zeros(2, requires_grad=True)
    z = zg.HardConcrete().quantile(torch.tensor([0.0, 1 - 2**-24]), logits)
    assert z.tolist() == [0.0, 1.0]
    z.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("p", "mean"), [(0.5, 0.0), (0.05, math.log(19))])
def test_hard_concrete_starts_at_its_droprate(p: float, mean: float) -> None:
    torch.manual_seed(0)
    logits = zg.HardConcrete(droprate_init=p).initial_logits(20_000)
    assert logits.mean().item() == pytest.approx(mean, abs=1e-3)
    assert logits.std().item() == pytest.approx(0.01, rel=0.05)


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
def test_gradients(beta: float) -> None:
    torch.manual_seed(1)
    soft = zg.SoftMask()
    soft.temperature = soft.temperature.double().fill_(beta)
    s = (torch.randn(6, dtype=torch.float64) / beta).requires_grad_()
    assert torch.autograd.gradcheck(soft.sample, s)
    assert torch.autograd.gradcheck(soft.open_probability, s)
    hard = zg.HardConcrete()
    a = torch.randn(6, dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8, 0.9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: hard.quantile(u, a), a)
    assert torch.autograd.gradcheck(hard.open_probability, a)
    assert torch.autograd.gradcheck(lambda a: hard.cdf(0.3, a), a)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: zg.HardConcrete(droprate_init=0.0), "0.0"),
        (lambda: zg.HardConcrete(droprate_init=1.0), "1.0"),
        (lambda: zg.HardConcrete(droprate_init=math.nan), "nan"),
        (lambda: zg.HardConcrete(temperature=0.0), "0.0"),
        (lambda: zg.HardConcrete(temperature=-1.0), "-1.0"),
        (lambda: zg.HardConcrete(low=0.0), "0.0"),
        (lambda: zg.HardConcrete(high=1.0), "1.0"),
        (lambda: zg.SoftMask(final_temperature=0.0), "0.0"),
        (lambda: zg.SoftMask(initial_value=math.nan), "nan"),
        (lambda: zg.SoftMask(steps=0), "0"),
        (lambda: zg.Exponential(1.0, -2.0, 3), "-2.0"),
        (lambda: zg.Penalty(-0.5), "-0.5"),
        (lambda: zg.Penalty(math.nan), "nan"),
        (lambda: zg.Penalty(over="flops"), "flops"),
        (lambda: zg.Penalty(reduce="max"), "max"),
    ],
)
def test_bad_values_are_named(make, value: str) -> None:
    with pytest.raises(zg.ZerogateError, match=f"got '?{value}"):
        make()
