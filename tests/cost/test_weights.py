"""Costs of single weights: the kernel against the plain ops, counts against what is not zero."""

from __future__ import annotations

import pytest
import torch

import zerogate as zg
from support import count_macs
from zerogate.cost.model import CostModel


def test_cost_of_weights_in_closed_form() -> None:
    torch.manual_seed(0)
    sparse = zg.sparsify(zg.models.lenet5(), torch.randn(2, 1, 28, 28), unit="weight")
    cost = sparse.cost_model
    for p in (torch.rand(cost.units), (torch.rand(cost.units) < 0.3).float()):
        p.requires_grad_()
        for over in ("params", "macs", "params"):
            found, wanted = cost.weighted(p, over, 1e-3), CostModel.weighted(cost, p, over, 1e-3)
            torch.testing.assert_close(found, wanted)
            for a, b in zip(*(torch.autograd.grad(x, p) for x in (found, wanted)), strict=True):
                torch.testing.assert_close(a, b)
    assert cost.expected(p).params.item() == cost.exact(p > 0).params
    assert torch.func.grad(lambda p: cost.weighted(p, "macs"))(p.detach()).shape == p.shape


def test_weights_cost_what_is_not_zero() -> None:
    model = zg.models.resnet20()
    sparse = zg.sparsify(model, torch.randn(2, 3, 32, 32), unit="weight")
    assert len(sparse.logits) == 432 + 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    assert sparse.dense_cost == zg.Cost(
        sum(p.numel() for p in model.parameters()), count_macs(model, torch.randn(1, 3, 32, 32))
    )
    with torch.no_grad():
        sparse.logits.copy_(torch.where(torch.rand(len(sparse.logits)) < 0.2, 8.0, -8.0))
    small = sparse.compact()
    zeros = sum(int((p == 0).sum()) for n, p in small.named_parameters() if ".conv" in n or n.startswith("conv"))
    assert sparse.cost().params == sparse.dense_cost.params - zeros
    assert sparse.cost(hard=False).params.item() == pytest.approx(sparse.cost().params, rel=0.02)
    assert small.classifier.weight.count_nonzero() == small.classifier.weight.numel()
    assert all(p.count_nonzero() for n, p in small.named_parameters() if "shortcut" in n)
