"""On networks nobody wrote by hand: expected cost is the mean of deployed ones, the count at closed and open gates, and its
gradient the slope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from random_nets import FAMILIES, layer_macs
from support import close_randomly, randomise

UNITS: dict[str, Any] = {"channel": "channel", "head": "head", "both": {"channel", "head"}, "weight": "weight"}
CASES = [(family, unit, seed) for family in FAMILIES for unit in UNITS for seed in range(8)]


def made(family: str, unit: str, seed: int) -> tuple[nn.Module, Tensor, zg.Sparsified]:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = FAMILIES[family](seed).double()
    randomise(model, generator)
    x = model.inputs(2, generator)
    try:
        return model, x, zg.sparsify(model, x, unit=UNITS[unit])
    except zg.WatchError as error:
        assert "no unit that could be removed" in str(error)
        pytest.skip("no such unit")


def costs(sparse: zg.Sparsified, p: Tensor) -> Tensor:
    found = sparse.cost_model.expected(p)
    return torch.stack([found.params, found.macs])


@pytest.mark.parametrize(("family", "unit", "seed"), CASES)
def test_expected_cost(family: str, unit: str, seed: int) -> None:
    model, x, sparse = made(family, unit, seed)
    p = torch.rand(len(sparse.logits), dtype=torch.float64)
    draws = [sparse.cost_model.exact(torch.rand(p.shape) < p) for _ in range(200)]
    for expected, what in zip(costs(sparse, p).tolist(), ("params", "macs"), strict=True):
        counts = torch.tensor([float(getattr(c, what)) for c in draws])
        error = counts.std().item() / len(counts) ** 0.5
        # Single weights are independent of each other; a group that meets itself is correlated with itself.
        slack = 0.0 if unit == "weight" else 0.01
        assert abs(expected - counts.mean().item()) <= 3 * error + slack * getattr(sparse.dense_cost, what)

    p = p[: len(p)].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: costs(sparse, p), p, fast_mode=True)
    corner = (p.detach() > 0.5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: costs(sparse, p), corner, fast_mode=True)

    close_randomly(sparse, torch.Generator().manual_seed(seed))
    is_open = sparse.is_open()
    assert costs(sparse, is_open.double()).tolist() == [sparse.cost().params, sparse.cost().macs]
    if unit == "weight":
        masked = sparse._forward.masked_weights(
            is_open.double(), [model.get_parameter(name) for name in sparse._layout.names]
        )
        closed = sum(int((w == 0).sum()) for w in masked)
        assert sparse.cost().params == sparse.dense_cost.params - closed
        assert closed == int((~is_open).sum())
    else:
        small = sparse.compact()
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        assert sparse.cost().macs == layer_macs(small, x)
