"""`min_channels` and `round_to`: expectations against enumeration, counts against what compaction keeps."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import zerogate as zg
from event_counts import one_by_one, random_probabilities
from random_nets import RandomNetwork
from support import close_randomly, count_macs, randomise, relative
from zerogate.cost.channels import ChannelCost

OPTIONS = [(1, 1), (2, 1), (3, 1), (1, 2), (1, 4), (2, 4), (3, 2), (4, 8), (9, 4)]
options = pytest.mark.parametrize("m, r", OPTIONS)


def widened(sparse: zg.Sparsified, m: int, r: int) -> ChannelCost:
    shapes = {name: p.shape for name, p in sparse.model.named_parameters()}
    return ChannelCost(sparse.structure, shapes, m, r)


def perceptron(a: int, b: int) -> zg.Sparsified:
    """Two hidden layers of a and b units."""
    model = nn.Sequential(nn.Linear(4, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 5))
    return zg.sparsify(model, torch.randn(1, 4))


def width(n: int, size: int, m: int, r: int) -> int:
    """What is meant, the long way: the first number of channels that will do."""
    return next((k for k in range(max(n, m, 1), size) if k % r == 0), size)


def mean_width(p: list[float], m: int, r: int) -> float:
    """E[width(N)] over all 2^size settings."""
    total = 0.0
    for z in itertools.product([0, 1], repeat=len(p)):
        total += math.prod(q if bit else 1 - q for bit, q in zip(z, p, strict=True)) * width(sum(z), len(p), m, r)
    return total


class Calls(TorchDispatchMode):
    """Names of the ATen calls made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [2048, 4096])
@pytest.mark.parametrize("m, r", [(4, 8), (1, 64), (300, 1), (1, 3)])
def test_wide_groups(size: int, m: int, r: int) -> None:
    sparse = perceptron(size, 2)
    cost = widened(sparse, m, r)
    generator = torch.Generator().manual_seed(size)
    widths = torch.tensor([width(n, size, m, r) for n in range(size + 1)], dtype=torch.float64)
    for sparsity in (0.02, 0.5, 1.0):
        p = random_probabilities((size,), generator) * sparsity
        two = torch.ones(2, dtype=torch.float64)  # the rest stays as it is: 5·A + 2·A parameters hang on the group
        expected = (one_by_one(p[None])[0] * widths).sum().item()
        b = width(2, 2, m, r)
        found = cost.expected(torch.cat([p, two])).params.item()
        assert found == pytest.approx((5 + b) * expected + 6 * b + 5, rel=1e-12)
        z = torch.cat([p.round(), two])
        assert abs(cost.expected(z).params.item() - cost.exact(z > 0).params) < 1e-6
        assert cost.exact(z > 0).params == (5 + b) * widths[int(p.round().sum())] + 6 * b + 5


@options
def test_expectation(m: int, r: int) -> None:
    """Against all 2^7 and 2^3 settings; the second group silences the first where it is empty."""
    cost = widened(perceptron(7, 3), m, r)
    for p in (
        [0.2, 0.9, 0.4, 0.7, 0.3, 0.5, 0.05, 0.6, 0.1, 0.3],
        [0.0, 1.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
    ):
        s = 1 - math.prod(1 - q for q in p[7:])
        a = s * mean_width(p[:7], m, r) + (1 - s) * width(0, 7, m, r)
        b = mean_width(p[7:], m, r)
        found = cost.expected(torch.tensor(p, dtype=torch.float64))
        assert found.params.item() == pytest.approx(5 * a + a * b + 6 * b + 5, rel=1e-13)
        assert found.macs.item() == pytest.approx(4 * a + a * b + 5 * b, rel=1e-13)


@options
def test_every_corner(m: int, r: int) -> None:
    cost = widened(perceptron(5, 3), m, r)
    logits = torch.randn(8)
    for z in itertools.product([0.0, 1.0], repeat=8):
        p = torch.tensor(z)
        a = width(int(p[:5].sum()) if p[5:].any() else 0, 5, m, r)
        b = width(int(p[5:].sum()), 3, m, r)
        assert cost.exact(p > 0) == zg.Cost(5 * a + a * b + 6 * b + 5, 4 * a + a * b + 5 * b)
        assert abs(cost.expected(p).params.item() - cost.exact(p > 0).params) < 1e-12
        kept = cost.kept(p > 0, logits)
        assert (kept[:5].sum(), kept[5:].sum()) == (a, b)


@options
def test_gradients_also_at_the_corners(m: int, r: int) -> None:
    model = widened(perceptron(6, 3), m, r)

    def cost(p: Tensor) -> Tensor:
        found = model.expected(p)
        return torch.stack([found.params, found.macs])

    corners = ["000000000", "111111111", "100000001", "111100000", "011010010"]
    for p in ([0.2, 0.9, 0.4, 0.7, 0.3, 0.5, 0.6, 0.1, 0.3], *([float(c) for c in z] for z in corners)):
        assert torch.autograd.gradcheck(cost, torch.tensor(p, dtype=torch.float64, requires_grad=True))


def test_gradient_of_a_wide_group() -> None:
    """∂E[f(N)]/∂p_u = E[f(N' + 1) − f(N')], with N' of the others."""
    size, m, r = 1000, 4, 8
    p = random_probabilities((size,), torch.Generator().manual_seed(0)).requires_grad_()
    widened(perceptron(size, 2), m, r).expected(torch.cat([p, torch.ones(2)])).macs.backward()
    widths = torch.tensor([width(n, size, m, r) for n in range(size + 1)], dtype=torch.float64)
    assert p.grad is not None
    for u in (0, 17, int(p.argmax()), int(p.argmin())):
        others = one_by_one(torch.cat([p[:u], p[u + 1 :]]).detach()[None])[0]
        assert p.grad[u].item() == pytest.approx(6 * (others * widths.diff()).sum().item(), abs=1e-10)


@settings(max_examples=100, derandomize=True)
@given(st.integers(0, 10**9), st.integers(1, 6), st.integers(1, 8))
def test_cost_is_the_count_of_what_is_kept(seed: int, m: int, r: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RandomNetwork(seed).double()
    randomise(model, generator)
    x = torch.randn(2, 2, *[model.size] * model.nd, dtype=torch.float64)
    try:
        sparse = zg.sparsify(model, x, min_channels=m, round_to=r)
    except zg.WatchError:
        assume(False)
    plain, cost = widened(sparse, 1, 1), sparse.cost_model
    assert cost.dense == plain.dense
    for _ in range(2):
        close_randomly(sparse, generator)
        with torch.no_grad():
            sparse.logits += 0.1 * torch.rand(sparse.logits.shape, generator=generator)
        is_open, logits = sparse.is_open(), sparse.logits.detach()
        fewest, kept = plain.kept(is_open, logits), sparse.kept()
        for group in sparse.groups:
            here, ranked = kept[group.slice], logits[group.slice]
            used = fewest[group.slice] & is_open[group.slice]
            assert here[used].all()
            assert here.sum() == width(int(used.sum()), group.units, m, r)
            if (here & ~used).any() and not here.all():
                assert ranked[here & ~used].min() >= ranked[~here].max()
        small = sparse.compact().eval()
        with torch.no_grad():
            assert relative(model.eval()(x), small(x)) <= 1e-10
        count = zg.Cost(sum(p.numel() for p in small.parameters()), count_macs(small, x))
        assert sparse.cost(hard=True) == count
        expected = cost.expected(is_open.double())
        assert abs(expected.params.item() - count.params) < 1e-6
        assert abs(expected.macs.item() - count.macs) < 1e-6


@pytest.mark.parametrize("name", ["googlenet", "vgg16", "resnet20"])
def test_widths_of_known_networks(name: str) -> None:
    sparse = zg.sparsify(getattr(zg.models, name)(), torch.randn(2, 3, 32, 32), min_channels=4, round_to=8)
    close_randomly(sparse, torch.Generator().manual_seed(1))
    small = sparse.compact()
    x = torch.randn(1, 3, 32, 32)
    assert sparse.cost() == zg.Cost(sum(p.numel() for p in small.parameters()), count_macs(small, x))
    for group in sparse.groups:
        n = int(sparse.kept()[group.slice].sum())
        assert n % 8 == 0 or n == group.units


def test_heads_are_neither_rounded_nor_kept_in_numbers() -> None:
    sparse = perceptron(6, 5)
    heads = replace(sparse.groups[0], kind="head")
    sparse.structure = replace(sparse.structure, groups=(heads, sparse.groups[1]))
    cost = widened(sparse, 3, 4)
    is_open = torch.tensor([True, True, False, False, False, False, True, False, False, False, False])
    for a, opened in ((2, is_open), (1, torch.zeros_like(is_open))):
        kept = cost.kept(opened, torch.randn(11))
        assert (kept[:6].sum(), kept[6:].sum()) == (a, 4)
        assert cost.exact(opened).macs == 4 * a + 4 * a + 4 * 5
    p = torch.rand(11, dtype=torch.float64)
    s = 1 - math.prod(1 - q for q in p[6:].tolist())
    a, b = s * mean_width(p[:6].tolist(), 1, 1) + 1 - s, mean_width(p[6:].tolist(), 3, 4)
    assert cost.expected(p).macs.item() == pytest.approx(4 * a + a * b + 5 * b, rel=1e-13)


def test_what_is_added_has_the_highest_logits() -> None:
    cost = widened(perceptron(8, 2), 4, 1)
    logits = torch.tensor([-5.0, 3.0, -1.0, -2.0, -7.0, -1.0, -float("inf"), -9.0, 1.0, 1.0])
    kept = cost.kept(logits > 0, logits)
    assert kept.nonzero().flatten().tolist() == [1, 2, 3, 5, 8, 9]
    dead = cost.kept(torch.arange(10) == 7, logits)  # nobody listens to the open one
    assert dead.nonzero().flatten().tolist() == [1, 2, 3, 5, 8, 9]


def test_what_is_switched_off_costs_nothing() -> None:
    sparse = zg.sparsify(zg.models.googlenet(), torch.randn(2, 3, 32, 32))
    p = sparse.open_probability().double()
    plain, wide = widened(sparse, 1, 1), widened(sparse, 4, 8)
    counts = []
    for cost in (plain, wide):
        cost.weighted(p, "params")  # makes its tables
        with Calls() as counted:
            cost.weighted(p, "params")
        counts.append(counted)
    off, on = counts
    assert not any("fft" in name for name in off.names)
    assert len(on.names) < len(off.names) + 80


@pytest.mark.parametrize("m, r", [(1, 1), (4, 8)])
def test_nothing_waits_for_the_device(m: int, r: int) -> None:
    """Tensors without values, of which nothing could be read on the host."""
    p = torch.rand(43, device="meta", requires_grad=True)
    cost = widened(perceptron(40, 3), m, r).expected(p)
    (cost.params + cost.macs).backward()
    assert p.grad is not None
    assert p.grad.is_meta


@pytest.mark.parametrize("option", ["min_channels", "round_to"])
@pytest.mark.parametrize("value", [0, -3, 2.0, True, "8", None])
def test_options_out_of_range(option: str, value: object) -> None:
    sparse = perceptron(3, 2)
    with pytest.raises(zg.ZerogateError, match=f"{option} must be a whole number of at least 1, got {value!r}"):
        ChannelCost(sparse.structure, {}, **{option: value})  # type: ignore[arg-type]
