"""Norms as people write them: parameters of any name, sums in place of means, the mean and largest of all channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from rule_checks import Net, check_rule, parameter, refused

N = 8


class Norm(Net):
    """A norm as a module of its own."""


def row() -> nn.Parameter:
    return nn.Parameter(torch.rand(N) + 0.5)


def column() -> nn.Parameter:
    return nn.Parameter(torch.rand(1, N, 1) + 0.5)


def layer_norm_with_a_buffer() -> nn.Module:
    norm = Norm(lambda m, x: F.layer_norm(x, x.shape[-1:], m.gamma, m.beta), gamma=row())
    norm.register_buffer("beta", torch.zeros(N))
    return norm


LAST = {
    "gamma and beta": lambda: Norm(
        lambda m, x: F.layer_norm(x, x.shape[-1:], m.gamma, m.beta), gamma=row(), beta=parameter(N)
    ),
    "beta and gamma": lambda: Norm(lambda m, x: F.layer_norm(x, x.shape[-1:], m.b, m.a), a=parameter(N), b=row()),
    "a buffer": layer_norm_with_a_buffer,
    "to unit length": lambda: Norm(
        lambda m, x: F.normalize(x, dim=-1) * m.scale * m.weight, scale=N**0.5, weight=row()
    ),
    "to unit length, from one": lambda: Norm(
        lambda m, x: F.normalize(x, dim=-1) * m.scale * (m.g + 1), scale=N**0.5, g=row()
    ),
    "to unit length, by its width": lambda: Norm(
        lambda m, x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * m.g, g=row()
    ),
    "without parameters": lambda: Norm(lambda m, x: F.normalize(x, p=2, dim=-1)),
    "by hand": lambda: Norm(
        lambda m, x: m.g * (x - x.mean(-1, keepdim=True)) / (x.std(-1, unbiased=False, keepdim=True) + 1e-6) + m.b,
        g=row(),
        b=parameter(N),
    ),
    "by the largest": lambda: Norm(
        lambda m, x: x / x.abs().amax(-1, keepdim=True).clamp(min=1e-3) * m.weight, weight=row()
    ),
    "weight and more added": lambda: Norm(
        lambda m, x: F.rms_norm(x, x.shape[-1:], m.weight) + m.first + m.second, weight=row(), first=row(), second=row()
    ),
}


@pytest.mark.parametrize("kind", LAST)
def test_norms_over_the_last_dimension(kind: str) -> None:
    model = nn.Sequential(nn.Linear(4, N), LAST[kind](), nn.Linear(N, 6), nn.ReLU(), nn.Linear(6, 3))
    check_rule(model, torch.randn(3, 5, 4), units={"0": N, "2": 6})


MAPS = {
    "of each place": lambda: Norm(
        lambda m, y: (
            m.gamma * (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-8).pow(0.5) + m.beta
        ),
        gamma=column(),
        beta=parameter(1, N, 1),
    ),
    "of all places": lambda: Norm(
        lambda m, y: (
            m.gamma
            * (y - y.mean(1, keepdim=True).mean(2, keepdim=True))
            / (((y - y.mean((1, 2), keepdim=True)) ** 2).mean((1, 2), keepdim=True) + 1e-8).pow(0.5)
            + m.beta
        ),
        gamma=column(),
        beta=parameter(1, N, 1),
    ),
    "to a length that is learnt": lambda: Norm(
        lambda m, y: m.weight[None, :, None].expand_as(y) * (y / (y.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)),
        weight=row(),
    ),
    "channel pool": lambda: Norm(lambda m, y: torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)),
}


@pytest.mark.parametrize("kind", ["of each place", "of all places", "to a length that is learnt"])
def test_norms_over_channels_of_maps(kind: str) -> None:
    model = nn.Sequential(nn.Conv1d(3, N, 3), MAPS[kind](), nn.Conv1d(N, 6, 3), nn.ReLU(), nn.Conv1d(6, 2, 1))
    check_rule(model, torch.randn(2, 3, 9), units={"0": N, "2": 6})


class SpatialAttention(nn.Module):
    """A map from the mean and the largest of all channels, by which all are scaled."""

    def __init__(self, by_dim: bool = False) -> None:
        super().__init__()
        self.conv, self.by_dim = nn.Conv2d(2, 1, 3, padding=1), by_dim

    def forward(self, x: Tensor) -> Tensor:
        largest = x.max(1, keepdim=True)[0] if self.by_dim else x.amax(1, keepdim=True)
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), largest], 1)))


@pytest.mark.parametrize("by_dim", [False, True])
def test_the_mean_and_largest_of_all_channels_are_those_of_the_kept(by_dim: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, N, 3), SpatialAttention(by_dim), nn.Conv2d(N, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    check_rule(model, torch.randn(2, 3, 8, 8), units={"0": N, "2": 6})


def test_a_module_that_gives_the_mean_and_largest_alone() -> None:
    model = Net(
        lambda m, x: m.head((y := m.a(x)) * m.map(m.pool(y)).sigmoid()),
        a=nn.Conv1d(3, N, 3),
        pool=MAPS["channel pool"](),
        map=nn.Conv1d(2, 1, 3, padding=1),
        head=nn.Conv1d(N, 2, 1),
    )
    check_rule(model, torch.randn(2, 3, 9), units={"a": N})


def test_the_largest_of_all_channels_outside_of_a_module_says_so() -> None:
    model = Net(
        lambda m, x: m.head((y := m.a(x)) * y.amax(1, keepdim=True).sigmoid()),
        a=nn.Conv1d(3, N, 3),
        head=nn.Conv1d(N, 2, 1),
    )
    assert "amax over channels" in refused(model, torch.randn(2, 3, 9))[""]


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_may_hold_none_in_place_of_its_weight(affine: bool) -> None:
    class RMS(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = row() if affine else None

        def forward(self, x: Tensor) -> Tensor:
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            return x * self.weight if self.weight is not None else x

    model = nn.Sequential(nn.Linear(4, N), RMS(), nn.Linear(N, 3))
    check_rule(model, torch.randn(5, 4), units={"0": N})
    sparse = zg.sparsify(model, torch.randn(5, 4))
    for _ in range(2):
        model(torch.randn(5, 4)).sum().backward()
    sparse.compact()
    sparse.detach()
    assert (model[1].weight is None) is not affine


@pytest.mark.parametrize("norm", ["gamma and beta", "a buffer", "to unit length", "to unit length, from one"])
def test_each_example_may_have_gates_of_its_own(norm: str) -> None:
    """Every example alone, with the gates that it drew, gives what it gives in the batch."""
    model = nn.Sequential(nn.Linear(4, N), LAST[norm](), nn.Linear(N, 3)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    sparse = zg.sparsify(model, x, per_example=True)
    with torch.no_grad():
        sparse.logits.copy_(torch.where(torch.arange(N) % 2 == 0, 8.0, -8.0))
    torch.manual_seed(0)
    drawn = model.train()(x)
    assert torch.allclose(drawn, sparse.compact()(x), atol=0.3) and drawn.isfinite().all()
