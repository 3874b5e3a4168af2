"""Compacted ≡ gated in training mode: what both return for the same batches, and what their running statistics become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, randomise
from training_mode import DeepSupervision, NoDropout, Projected, TwoAuxiliaryHeads, difference_in_training

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
