"""Gates in the replicas of nn.DataParallel, made here on one device."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Residual, close_randomly

X = torch.randn(4, 2, 5, 5)


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes two replicas as nn.DataParallel does, of devices that are both the CPU."""
    torch_replicate = sys.modules["torch.nn.parallel.replicate"]

    def broadcast(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[(t.detach() if detach else t) * 1 for t in tensors] for _ in devices]

    monkeypatch.setattr(torch_replicate, "_get_all_device_indices", lambda devices: list(devices), raising=False)
    monkeypatch.setattr(torch_replicate, "_get_device_index", lambda device, *_: device, raising=False)
    monkeypatch.setattr(torch_replicate, "_broadcast_coalesced_reshape", broadcast)
    return lambda model: torch_replicate.replicate(model, [0, 1])  # type: ignore[attr-defined]


def gated(model: nn.Module, x: Tensor = X, **options: Any) -> zg.Sparsified:
    torch.manual_seed(0)
    sparse = zg.sparsify(model, x, **options)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    return sparse


@pytest.mark.parametrize("options", [{}, {"gate": zg.SoftMask(steps=5)}, {"unit": "weight"}, {"gate": zg.Random(0.5)}])
def test_replicas_compute_what_the_gated_model_does(replicas: Any, options: dict[str, Any]) -> None:
    sparse = gated(Residual(), **options)
    model = sparse.model.eval()
    with torch.no_grad():
        expected = model(X)
        with sparse.detached():
            assert (model(X) - expected).abs().max() > 1e-3
        for replica in replicas(model):
            for _ in range(2):
                assert torch.equal(replica(X), expected)
        assert torch.equal(model(X), expected)
    assert "weight" not in vars(model.stem)


def test_gradients_reach_weights_and_gates(replicas: Any) -> None:
    sparse = gated(Residual(), gate=zg.SoftMask(steps=5))
    sparse.logits.data.mul_(0.02)
    model = sparse.model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    parameters = [*model.parameters(), sparse.logits]
    expected = torch.autograd.grad(model(X).square().sum(), parameters)
    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(lambda replica, x: replica(x), replicas(model), X.split(2)))
    received = torch.autograd.grad(torch.cat(outputs).square().sum(), parameters)
    for a, b in zip(expected, received, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_random_gates_are_drawn_in_training(replicas: Any) -> None:
    sparse = gated(Residual())
    sparse.logits.data.mul_(0.02)
    first, second = replicas(sparse.model.train())
    assert not torch.equal(first(X), second(X))
    first(X).sum().backward()
    assert sparse.logits.grad is not None and sparse.logits.grad.abs().sum() > 0


def test_tied_weights_are_gated_under_all_their_names(replicas: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[3].weight = model[1].weight
    x = torch.randn(3, 4)
    sparse = gated(model, x)
    model.eval()
    assert len(sparse.logits) and all(torch.equal(replica(x), model(x)) for replica in replicas(model))


def test_a_model_inside_a_larger_one(replicas: Any) -> None:
    sparse = gated(Residual())
    whole = nn.Sequential(sparse.model, nn.Linear(3, 2)).eval()
    assert all(torch.equal(replica(X), whole(X)) for replica in replicas(whole))


def test_a_part_of_the_model_is_refused(replicas: Any) -> None:
    sparse = gated(Residual())
    with pytest.raises(zg.ZerogateError, match=r"copies of a part of the gated model .* nn\.DataParallel\(model\)"):
        replicas(sparse.model.body)[0](torch.randn(2, 6, 5, 5))


def test_what_lies_not_on_weights_alone_is_refused(replicas: Any) -> None:
    normed = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))
    for model, x, options in ((normed, torch.randn(3, 5), {}), (Residual(), X, {"per_example": True})):
        sparse = gated(model, x, **options)
        with pytest.raises(zg.ZerogateError, match=r"do not go with nn\.DataParallel; use nn\.parallel\.Distributed"):
            replicas(sparse.model)[0](x)
