"""Norms over the kept channels: the hooks against the norm of the kept channels alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zerogate.masking.norms import FixedWeights, attach, kept_channels
from zerogate.structure import Norm

N = 10
KEPT = torch.arange(N) % 3 != 0
SITES = {nn.LayerNorm: True, nn.RMSNorm: False}


def site(kind: type[nn.Module], outside: bool = False) -> Norm:
    names = {"factor": "" if outside else "weight", "shift": "bias" if SITES[kind] else ""}
    return Norm("norm", -1, (4, N), torch.arange(N), "", centred=SITES[kind], over=(-1,), **names)


def filled(norm: nn.Module) -> nn.Module:
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return norm.double()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("kind", SITES)
def test_statistics_are_those_of_the_open_channels(kind: type[nn.Module], outside: bool) -> None:
    norm = filled(kind(N, eps=1e-12))
    plain = copy.deepcopy(norm)
    x = torch.randn(4, N, dtype=torch.float64)
    small = filled(kind(int(KEPT.sum()), eps=1e-12))
    for own, whole in zip(small.parameters(), plain.parameters(), strict=True):
        own.data = whole.data[KEPT]
    attach(norm, site(kind, outside), FixedWeights(KEPT.double()))
    assert torch.allclose(norm(x)[:, KEPT], small(x[:, KEPT]), rtol=0, atol=1e-10)
    assert "weight" not in vars(norm)  # the shadow is off again
    for own, whole in zip(norm.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, whole)


@pytest.mark.parametrize("kind", SITES)
def test_each_example_has_its_own_open_channels(kind: type[nn.Module]) -> None:
    norm = filled(kind(N, eps=1e-12))
    x, w = torch.randn(4, N, dtype=torch.float64), (torch.rand(4, N) < 0.6).double()
    w[:, 0] = 1
    together = copy.deepcopy(norm)
    attach(together, site(kind), FixedWeights(w))
    y = together(x)
    for i in range(4):
        alone = copy.deepcopy(norm)
        attach(alone, site(kind), FixedWeights(w[i]))
        opened = w[i].bool()
        assert torch.allclose(y[i][opened], alone(x[i : i + 1])[0][opened], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", SITES)
def test_a_norm_whose_channels_are_all_closed_stays_finite(kind: type[nn.Module]) -> None:
    norm = kind(N)
    attach(norm, site(kind), FixedWeights(torch.zeros(N)))
    assert norm(torch.randn(4, N)).isfinite().all()


def test_a_forward_that_breaks_off_leaves_no_shadow() -> None:
    class Breaks(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("broken")

    norm = Breaks(N)
    attach(norm, site(nn.LayerNorm), FixedWeights(KEPT))
    with pytest.raises(ValueError, match="broken"):
        norm(torch.randn(4, N))
    assert "weight" not in vars(norm)


def test_channels_without_a_unit_are_kept() -> None:
    norm = Norm("norm", -1, (2, 4), torch.tensor([0, -1, 1, -1]), "")
    assert kept_channels(norm, torch.tensor([False, True])).tolist() == [False, True, True, True]
