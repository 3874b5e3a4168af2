"""Hard-concrete gates against the paper's closed forms, a million samples and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def test_gradients_of_hard_concrete_gates_are_the_differences_of_their_values() -> None:
    torch.manual_seed(1)
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
    ],
)
def test_bad_values_are_named(make: Callable[[], object], value: str) -> None:
    with pytest.raises(zg.ZerogateError, match=f"got '?{value}"):
        make()
