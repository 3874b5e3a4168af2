"""Costs against hand counts, exhaustive expectations, independent counts of compacted networks, and finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zerogate as zg
from support import Lambda, Residual, close_randomly, count_macs

CIFAR = (2, 3, 32, 32)
MODELS = {
    "googlenet": CIFAR,
    "resnet20": CIFAR,
    "vgg16": CIFAR,
    "wrn28_10": CIFAR,
    "lenet300": (2, 1, 28, 28),
    "lenet5": (2, 1, 28, 28),
    "convnet": (2, 1, 8, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_cost_is_the_count_of_the_compacted_module(name: str) -> None:
    model = getattr(zg.models, name)()
    x = torch.randn(MODELS[name])
    sparse = zg.sparsify(model, x)
    dense = sum(p.numel() for p in model.parameters())
    assert sparse.dense_cost == zg.Cost(dense, count_macs(model, x))
    if name == "googlenet":
        assert dense == 260_650
    generator = torch.Generator().manual_seed(3)
    for _ in range(1 if name == "wrn28_10" else 3):
        close_randomly(sparse, generator)
        small = sparse.compact()
        count = zg.Cost(sum(p.numel() for p in small.parameters()), count_macs(small, x))
        assert sparse.cost(hard=True) == count
        assert count.params < dense


@pytest.mark.parametrize("name", MODELS)
def test_every_channel_between_layers_can_be_removed(name: str) -> None:
    """Each producing layer but the classifier is in a group, whole."""
    model = getattr(zg.models, name)()
    sparse = zg.sparsify(model, torch.randn(MODELS[name]))
    for axis in {c.produces for c in sparse.structure.calls}:
        assert axis is not None
        if axis[0] == "classifier.weight":
            continue
        assert (sparse.structure.axes[axis] >= 0).all(), axis
    assert {name for g in sparse.groups for name in g.producers} == {
        c.layer for c in sparse.structure.calls if c.layer != "classifier"
    }


def chain() -> zg.Sparsified:
    """Two hidden layers of 3 and 2 units."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 5))
    return zg.sparsify(model, torch.randn(1, 4))


def brute_force(p: list[float]) -> tuple[float, float]:
    """Expected (params, macs) of `chain` over all 2^5 settings, counted by hand."""
    params = macs = 0.0
    for z in itertools.product([0, 1], repeat=5):
        weight = 1.0
        for bit, q in zip(z, p, strict=True):
            weight *= q if bit else 1 - q
        a, b = sum(z[:3]), sum(z[3:])
        a = 0 if b == 0 else a  # nobody listens to the first layer
        a, b = max(a, 1), max(b, 1)
        params += weight * (4 * a + a + a * b + b + b * 5 + 5)
        macs += weight * (4 * a + a * b + b * 5)
    return params, macs


def test_expected_cost_is_the_expectation() -> None:
    cost = chain().cost_model
    p = [0.2, 0.9, 0.4, 0.7, 0.3]
    expected = cost.expected(torch.tensor(p, dtype=torch.float64))
    params, macs = brute_force(p)
    # a and b meet in one weight and are weakly dependent, since b = 0 silences a; everything else is exact
    assert expected.params.item() == pytest.approx(params, rel=0.02)
    assert expected.macs.item() == pytest.approx(macs, rel=0.03)
    always = [0.2, 0.9, 0.4, 1.0, 0.3]  # now b is never 0
    params, macs = brute_force(always)
    expected = cost.expected(torch.tensor(always, dtype=torch.float64))
    assert expected.params.item() == pytest.approx(params, rel=1e-12)
    assert expected.macs.item() == pytest.approx(macs, rel=1e-12)


def test_expected_equals_deployed_at_every_corner() -> None:
    sparse = chain()
    for z in itertools.product([0.0, 1.0], repeat=5):
        expected = sparse.cost_model.expected(torch.tensor(z))
        assert (expected.params.item(), expected.macs.item()) == brute_force(list(z))
        exact = sparse.cost_model.exact(torch.tensor(z) > 0)
        assert (exact.params, exact.macs) == brute_force(list(z))


def test_expected_cost_is_differentiable_also_at_the_corners() -> None:
    sparse = chain()

    def cost(p: torch.Tensor) -> torch.Tensor:
        found = sparse.cost_model.expected(p)
        return torch.stack([found.params, found.macs])

    for p in ([0.2, 0.9, 0.4, 0.7, 0.3], [0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0, 0.0]):
        assert torch.autograd.gradcheck(cost, torch.tensor(p, dtype=torch.float64, requires_grad=True))
    sparse.cost(hard=False).params.backward()
    assert sparse.logits.grad is not None
    assert (sparse.logits.grad > 0).all()


def test_death_travels_upstream() -> None:
    """Closing the last hidden layer makes the first one useless, and a residual block's inside as well."""
    sparse = chain()
    with torch.no_grad():
        sparse.logits[:3], sparse.logits[3:] = 8.0, -8.0
    assert sparse.cost().params == 4 + 1 + 1 + 1 + 5 + 5
    assert sparse.compact()[0].out_features == 1


@pytest.mark.parametrize("name", ["googlenet", "resnet20"])
def test_expected_cost_is_the_mean_of_deployed_costs(name: str) -> None:
    """Also where whole layers are closed, so that those before them are heard by nobody."""
    torch.manual_seed(0)
    sparse = zg.sparsify(getattr(zg.models, name)(), torch.randn(CIFAR))
    p = torch.rand(len(sparse.logits), dtype=torch.float64)
    for group in sparse.groups:
        if torch.rand(()) < 0.4:
            p[group.slice] *= 2 / group.units
    found = [sparse.cost_model.exact(torch.rand(p.shape) < p) for _ in range(300)]
    expected = sparse.cost_model.expected(p)
    for what in ("params", "macs"):
        counts = torch.tensor([float(getattr(c, what)) for c in found])
        error = counts.std().item() / len(counts) ** 0.5
        assert getattr(expected, what).item() == pytest.approx(counts.mean().item(), abs=3 * error, rel=0.01)


@pytest.mark.parametrize("options", [{}, {"min_channels": 3, "round_to": 2}])
def test_gradients_of_costs_on_networks_with_branches(options: dict[str, int]) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(4, 2), nn.Linear(2, 3)
            self.e, self.f = nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).relu()
            return self.f(self.e(torch.cat([self.b(x), self.d(self.c(x).relu())], -1).relu()).relu())

    sparse = zg.sparsify(Branches(), torch.randn(2, 3), **options)  # type: ignore[arg-type]

    def cost(p: torch.Tensor) -> torch.Tensor:
        found = sparse.cost_model.expected(p)
        return torch.stack([found.params, found.macs])

    for p in (torch.rand(len(sparse.logits)), (torch.rand(len(sparse.logits)) < 0.5).float()):
        p = p.double().requires_grad_()
        assert torch.autograd.gradcheck(cost, p)
        assert torch.autograd.gradgradcheck(cost, p)


def test_macs_are_per_example() -> None:
    one = zg.sparsify(Residual(), torch.randn(1, 2, 5, 5)).dense_cost
    five = zg.sparsify(Residual(), torch.randn(5, 2, 5, 5)).dense_cost
    assert one == five


def test_a_layer_used_twice_costs_twice_the_macs_and_once_the_parameters() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 6, 1)
            self.body = nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.body(self.body(self.stem(x)))
            return self.head(x.mean((2, 3)))

    model, x = Twice(), torch.randn(2, 1, 4, 4)
    sparse = zg.sparsify(model, x)
    assert sparse.dense_cost == zg.Cost(sum(p.numel() for p in model.parameters()), count_macs(model, x))
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    assert sparse.cost() == zg.Cost(sum(p.numel() for p in small.parameters()), count_macs(small, x))


def test_transposed_convolutions_in_groups_count() -> None:
    model = Lambda(
        lambda m, x: m.head(m.c(torch.relu(m.b(m.a(x)))).mean((2, 3))),
        a=nn.Conv2d(2, 8, 3),
        b=nn.ConvTranspose2d(8, 8, 3, groups=2),
        c=nn.Conv2d(8, 6, 1),
        head=nn.Linear(6, 3),
    )
    x = torch.randn(2, 2, 8, 8)
    sparse = zg.sparsify(model, x)
    assert sparse.dense_cost == zg.Cost(sum(p.numel() for p in model.parameters()), count_macs(model, x))
    assert [g.name for g in sparse.groups] == ["a", "b", "c"]


class Conditional(nn.Module):
    """A convolution whose weight is a mixture of several, by what the network computes of each example."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), nn.Conv2d(6, 4, 1)
        self.weights = nn.Parameter(torch.randn(3, 6 * 8 * 9))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        mixed = (self.router(x.mean((2, 3))).sigmoid() @ self.weights).view(n * 6, 8, 3, 3)
        return self.head(torch.conv2d(x.reshape(1, n * 8, h, w), mixed, padding=1, groups=n).view(n, 6, h, w))


def test_convolutions_whose_weight_a_layer_has_made_count() -> None:
    model, x = Conditional(), torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert zg.sparsify(model, x).dense_cost.macs == counter.get_total_flops() // 2 // len(x)
