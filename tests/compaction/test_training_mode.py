"""Compacted ≡ gated in training mode: what both return for the same batches, and what their running statistics become."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, randomise
from training_mode import DeepSupervision, NoDropout, Projected, TwoAuxiliaryHeads, difference_in_training
from zerogate.compaction.cuttable import ClassModel
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.training_comparison import compare_in_training
from zerogate.compaction.verify import verify
from zerogate.masking.unit import CHANNEL
from zerogate.structure import Structure

X = (2, 2, 6, 6)
MODELS: dict[str, Any] = {
    "auxiliary heads": TwoAuxiliaryHeads,
    "deep supervision": DeepSupervision,
    "a projection": Projected,
    "a projection and its features": lambda: Projected(features=True),
}


def gated(name: str, **options: Any) -> zg.Sparsified:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    randomise(model, torch.Generator().manual_seed(1))
    return zg.sparsify(model, torch.randn(X, dtype=torch.float64), **options)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_batches(name: str) -> None:
    sparse = gated(name)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        close_randomly(sparse, generator)
        batches = torch.randn(3, 5, *X[1:], dtype=torch.float64, generator=generator)
        assert difference_in_training(sparse, [*batches]) <= 1e-10
        small = sparse.compact()
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())


def test_closed_channels_are_read_by_no_auxiliary_head() -> None:
    sparse = gated("auxiliary heads")
    sparse.gates.frozen = True
    group = next(g for g in sparse.groups if g.name == "stem")
    with torch.no_grad():
        sparse.logits.fill_(8.0)
        sparse.logits[group.slice.start] = -8.0
    sparse.model.train()
    x = torch.randn(4, *X[1:], dtype=torch.float64)
    with torch.no_grad(), NoDropout():
        before = sparse.model(x)
        sparse.model.norm.bias[0] += 1
        after = sparse.model(x)
    assert all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_training_goes_on(tmp_path: Path) -> None:
    sparse = gated("auxiliary heads")
    close_randomly(sparse, torch.Generator().manual_seed(3), "share")
    optimizer = torch.optim.Adam(sparse.param_groups(1e-3))
    average = torch.optim.swa_utils.AveragedModel(sparse.model)

    def step(model: nn.Module) -> None:
        x = torch.randn(4, *X[1:], dtype=torch.float64)
        loss: Tensor = sum((y.square().sum() for y in model(x)), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    sparse.model.train()
    step(sparse.model)
    average.update_parameters(sparse.model)
    small = sparse.compact(optimizer=optimizer, ema=average)
    assert small.training
    step(small)
    average.update_parameters(small)
    assert all(p.grad is not None for p in small.parameters())
    zg.save(small, tmp_path / "small.safetensors")
    loaded = zg.load(tmp_path / "small.safetensors", lambda: TwoAuxiliaryHeads().double())
    x = torch.randn(4, *X[1:], dtype=torch.float64)
    with torch.no_grad(), NoDropout():
        assert all(torch.equal(a, b) for a, b in zip(small.train()(x), loaded.train()(x), strict=True))


def test_single_weights() -> None:
    sparse = gated("auxiliary heads", unit="weight")
    names = {g.name for g in sparse.groups}
    assert {"stem.weight", "aux1.conv.weight", "aux2.out.weight"} <= names
    close_randomly(sparse, torch.Generator().manual_seed(4), "share")
    assert difference_in_training(sparse, [torch.randn(X, dtype=torch.float64)]) <= 1e-10
    p = torch.full((len(sparse.logits),), 0.5, requires_grad=True)
    expected = sparse.cost_model.expected(p)
    expected.macs.backward()
    aux = next(g for g in sparse.groups if g.name == "aux1.conv.weight")
    assert p.grad is not None and not p.grad[aux.slice].any() and p.grad.isfinite().all()


@pytest.mark.parametrize("over", ["macs", "params"])
def test_a_target(over: str) -> None:
    sparse = gated("auxiliary heads", objective=zg.Target(**{over: 0.5}))
    sparse.project()
    sparse.compact()
    assert getattr(sparse.cost(), over) <= 0.5 * getattr(sparse.dense_cost, over)


def test_gates_of_each_example() -> None:
    sparse = gated("auxiliary heads", per_example=True)
    close_randomly(sparse, torch.Generator().manual_seed(5), "share")
    sparse.model.train()
    outputs = sparse.model(torch.randn(X, dtype=torch.float64))
    sum(F.mse_loss(y, torch.zeros_like(y)) for y in outputs).backward()
    assert sparse.logits.grad is not None
    assert difference_in_training(sparse, [torch.randn(X, dtype=torch.float64)]) <= 1e-10


class Truncated(nn.Module):
    """Slices in training mode, by a number in the code, what its last layer reads: nothing that sizes would show."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            x = x * (x.new_ones(x.shape[-1]).cumsum(-1) < 5)
        return self.b(x)


def deployed_of(model: nn.Module, x: Tensor, kept: Tensor, structure: Structure) -> Deployed:
    return Deployed(ClassModel(model), x, structure, kept, unit=CHANNEL, gated_names=(), mask=lambda weights: weights)


def structure_of(model: nn.Module, x: Tensor, **changes: Any) -> Structure:
    return dataclasses.replace(zg.sparsify(copy.deepcopy(model), x, verify=False).structure, **changes)


def test_a_difference_in_training_mode_alone_is_found() -> None:
    model, x = Truncated().double(), torch.randn(4, 3, dtype=torch.float64)
    plain = nn.Sequential(OrderedDict(a=nn.Linear(3, 8), b=nn.Linear(8, 2)))
    structure = structure_of(plain, x.float(), trains_apart=True)
    kept = torch.arange(8) > 2
    with torch.no_grad():
        model.b.weight[:, :3] = 0  # closed
    deployed = deployed_of(model, x, kept, structure)
    with pytest.raises(zg.CompactionError, match="Truncated differs from the gated one in training mode by"):
        verify(deployed, deployed.plan())
    unseen = deployed_of(model, x, kept, dataclasses.replace(structure, trains_apart=False))
    assert verify(unseen, unseen.plan()) <= 1e-10


class Noisy(nn.Module):
    """Other in each call of training mode, whatever the seed."""

    calls = 0

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.fails = nn.Linear(3, 8), nn.Linear(8, 2), fails

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Noisy.calls += 1
            if self.fails:
                raise RuntimeError("no labels")
        return self.b(self.a(x) * (Noisy.calls if self.training else 1))


@pytest.mark.parametrize("fails", [False, True])
def test_what_cannot_be_compared_in_training_mode_is_not(fails: bool) -> None:
    model, x = Noisy(fails).double(), torch.randn(4, 3, dtype=torch.float64)
    plain = nn.Sequential(OrderedDict(a=nn.Linear(3, 8), b=nn.Linear(8, 2)))
    deployed = deployed_of(model, x, torch.ones(8) > 0, structure_of(plain, x.float(), trains_apart=True))
    assert compare_in_training(deployed, deployed.plan(), True) is None
    assert verify(deployed, deployed.plan()) <= 1e-10


class Statistics(nn.Module):
    """A running mean of its own, wrong in training mode for a network that has lost channels."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            self.mean.copy_(x.mean(0) * x.shape[-1])
        return self.b(x)


def test_statistics_are_compared() -> None:
    model, x = Statistics().double(), torch.randn(4, 3, dtype=torch.float64)
    plain = nn.Sequential(OrderedDict(a=nn.Linear(3, 8), b=nn.Linear(8, 2)))
    structure = structure_of(plain, x.float(), trains_apart=True)
    structure.axes["mean", 0] = torch.arange(8)
    deployed = deployed_of(model, x, torch.arange(8) > 2, structure)
    with torch.no_grad():
        model.b.weight[:, :3] = 0
    found = compare_in_training(deployed, deployed.plan(), True)
    assert found is not None and found.value > 0.1


def test_what_a_dead_group_counts_does_not_matter() -> None:
    """With nothing that reads it, the body keeps one channel of those that are open, and the stem as well: the statistics
    of this channel are others then, and nobody asks for them."""
    sparse = gated("a projection")
    with torch.no_grad():
        sparse.logits.fill_(8.0)
        for group in sparse.groups:
            if group.name in ("body", "project.0"):
                sparse.logits[group.slice] = -8.0
    assert difference_in_training(sparse, [torch.randn(X, dtype=torch.float64)]) <= 1e-10
    in_use = sparse.cost_model.in_use(sparse.is_open())
    assert sparse.is_open().any() and not in_use.any()


class Chaotic(nn.Module):
    """In training mode it makes much of a rounding, as batch statistics of two examples do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 97), nn.Linear(97, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        for _ in range(6 if self.training else 0):
            y = (1000 * y).sin()
        return y


def test_a_network_that_enlarges_roundings_is_not_judged_by_them() -> None:
    torch.manual_seed(0)
    model, x = Chaotic().double(), torch.randn(4, 3, dtype=torch.float64)
    plain = nn.Sequential(OrderedDict(a=nn.Linear(3, 97), b=nn.Linear(97, 2)))
    structure = structure_of(plain, x.float(), trains_apart=True)
    with torch.no_grad():
        model.b.weight[:, ::2] = 0
    deployed = deployed_of(model, x, torch.arange(97) % 2 > 0, structure)
    assert compare_in_training(deployed, deployed.plan(), True) is None
    assert verify(deployed, deployed.plan()) <= 1e-10
