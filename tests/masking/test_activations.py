"""Activations times the gates of every example, against plain ops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from gated_networks import X, loss_and_gradients, plainly
from support import Residual
from zerogate.masking.activations import ScaleChannels


class Shared(nn.Module):
    """One activation read by several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out = self.b(x) + self.c(x)
        x = x + 1.0
        return out + self.d(x)


def test_per_example_products_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = [], []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                plainly(patch)
            torch.manual_seed(0)
            model, x = Shared(), torch.randn(4, 3)
            sparse = zg.sparsify(model, x, per_example=True)
            for name in "bcd":
                model.get_submodule(name).register_forward_hook(lambda m, args, out: read.append(args[0]))
            torch.manual_seed(1)
            model(x).square().sum().backward()
            assert not sparse._forward._products
            found.append([sparse.logits.grad, *(p.grad for p in model.parameters())])
    assert read[0] is read[1] is not read[2]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "last", "flat"])
def test_products_with_activations(layout: Any, kind: torch.dtype) -> None:
    """x · z to the last bit, also of zeros and of what is not a number; its gradients, and theirs."""
    torch.manual_seed(0)
    x, z, dim = torch.randn(3, 4, 2, 5), torch.rand(3, 4), 1
    z[0], z[1, 0] = 0.0, 1.0
    x[0, 0, 0, 0], x[2, 1, 0, 1], x[1, 2, 0, 0] = 0.0, float("inf"), float("nan")
    if layout == "last":
        x, dim = x.permute(0, 2, 3, 1).contiguous(), -1
    elif layout == "flat":
        x = x[:, :, 0, 0].contiguous()
    else:
        x = x.contiguous(memory_format=layout)
    shape = [3, *[1] * (x.ndim - 1)]
    shape[dim] = 4
    times = ScaleChannels()
    given = [x.to(kind).requires_grad_(), z.to(kind).requires_grad_()]
    product = times(*given, dim)
    plain = given[0] * given[1].view(shape)
    torch.testing.assert_close(product, plain, rtol=0, atol=0, equal_nan=True)
    assert product.stride() == plain.stride()
    grad = torch.randn_like(plain)
    for found, wanted in zip(*(torch.autograd.grad(y, given, grad) for y in (product, plain)), strict=True):
        torch.testing.assert_close(found, wanted, equal_nan=True)
    if kind == torch.float64:
        given = [x.nan_to_num(0.5, 0.5).double().requires_grad_(), given[1].detach().requires_grad_()]
        assert torch.autograd.gradcheck(lambda x, z: times(x, z, dim), given)
        assert torch.autograd.gradgradcheck(lambda x, z: times(x, z, dim), given)
        fixed = given[0].detach()
        assert torch.autograd.gradcheck(lambda z: times(fixed, z, dim), given[1:])


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(0.4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_per_example_closed_forms_are_the_plain_ops(
    layout: torch.memory_format, gate: zg.Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Any]] = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                plainly(patch)
            torch.manual_seed(0)
            model, x = Residual().to(memory_format=layout), torch.randn(X).contiguous(memory_format=layout)
            sparse = zg.sparsify(model, x, gate=copy.deepcopy(gate), per_example=True, objective=zg.Penalty(3.0))
            found.append(loss_and_gradients(sparse, model, x))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
