"""Layers with complex weights: real gates multiply them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from gated_networks import plainly
from rule_checks import Net, check_rule

KIND = torch.complex128
X = torch.randn(3, 4, dtype=KIND, generator=torch.Generator().manual_seed(0))


def linear(inputs: int, out: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, out, bias=bias, dtype=KIND)


def split_relu(x: Tensor) -> Tensor:
    return torch.complex(x.real.relu(), x.imag.relu())


def test_linear_layers() -> None:
    model = nn.Sequential(linear(4, 8), Net(lambda m, x: split_relu(x)), linear(8, 6, bias=False), linear(6, 3))
    check_rule(model, X, units={"0": 8, "2": 6})


def test_convolutions_and_products() -> None:
    model = Net(
        lambda m, x: (split_relu(m.a(x)).mean(2) * m.scale) @ m.w,
        a=nn.Conv1d(4, 8, 3, dtype=KIND),
        scale=nn.Parameter(torch.randn(8, dtype=KIND)),
        w=nn.Parameter(torch.randn(8, 3, dtype=KIND)),
    )
    check_rule(model, X[..., None].expand(-1, -1, 5), units={"a": 8}, witness=False)


def test_a_filter_of_frequencies() -> None:
    """Real channels, a complex weight for each pair of them at each frequency, as neural operators have."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        spectrum = torch.fft.rfft(x, dim=1)
        mixed = torch.einsum("btc,tco->bto", spectrum, m.weight)
        return m.head(torch.fft.irfft(mixed, n=x.shape[1], dim=1).relu())

    model = Net(
        forward,
        a=nn.Linear(4, 8),
        weight=nn.Parameter(torch.randn(4, 8, 7, dtype=KIND)),
        head=nn.Linear(7, 3),
    )
    sparse = zg.sparsify(model.double(), torch.randn(2, 6, 4, dtype=torch.float64))
    assert sum(g.units for g in sparse.groups) == 8 + 7
    with torch.no_grad():
        sparse.logits[::2] = -8
    assert sparse.difference(sparse.compact()) < 1e-12


@pytest.mark.parametrize("plain", [False, True])
def test_gradients_of_gates_are_those_of_the_product(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        plainly(monkeypatch)
    model = nn.Sequential(linear(4, 8), linear(8, 3))
    sparse = zg.sparsify(model, X, gate=zg.SoftMask(steps=10))
    with torch.no_grad():
        sparse.logits.uniform_(-1, 1)
    model(X).abs().square().sum().backward()
    z = sparse.gates.gate.sample(sparse.logits.detach()).requires_grad_()
    own = [p.detach() for p in model.parameters()]
    y = ((X @ own[0].mT + own[1]) @ (own[2] * z).mT + own[3]).abs().square().sum()
    (expected,) = torch.autograd.grad(y, z)
    slope = torch.autograd.functional.jacobian(sparse.gates.gate.sample, sparse.logits.detach()).diagonal()
    assert sparse.logits.grad is not None
    assert torch.allclose(sparse.logits.grad, expected * slope, rtol=1e-4, atol=1e-5)


def test_single_weights() -> None:
    model = nn.Sequential(linear(4, 8), linear(8, 3))
    sparse = zg.sparsify(model, X, unit="weight")
    (model(X).abs().sum() + sparse.loss()).backward()
    assert sparse.logits.grad is not None and sparse.logits.grad.any()
    with torch.no_grad():
        sparse.logits[::2] = -8
    assert sparse.difference(sparse.compact()) < 1e-12


def test_a_network_in_single_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 8, dtype=torch.complex64), nn.Linear(8, 3, dtype=torch.complex64))
    sparse = zg.sparsify(model, X.to(torch.complex64))
    with torch.no_grad():
        sparse.logits[:3] = -8
    assert sparse.difference(small := sparse.compact()) < 1e-6
    assert small[1].weight.dtype is torch.complex64 and small[1].weight.shape == (3, 5)
