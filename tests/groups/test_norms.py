"""The exact rule for a norm, found by trying."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Lambda
from zerogate.groups import norms
from zerogate.groups.norms import NormRule, exact_rules, follow_norms
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.record_run import watch
from zerogate.groups.units import UnitFilter, find_units
from zerogate.structure import Structure

N = 12


class ScaledFromOne(nn.Module):
    """An RMS norm whose weight is no plain factor, as in Gemma."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(N))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + self.weight)


class ByWidth(nn.Module):
    """Divides by a number of channels that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.width, self.other = nn.Parameter(torch.ones(N)), N, N

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().sum(-1, keepdim=True) / self.width + 1e-6).rsqrt() * self.weight


class ToUnitSum(nn.Module):
    """Is no norm that hooks on its input can take over fewer channels: the mean of absolute values, to a power."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(N))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().mean(-1, keepdim=True) ** 2 + 1) * self.weight


def recorded(norm: nn.Module) -> tuple[nn.Module, Recording, Structure]:
    model = Lambda(lambda m, x: m.b(m.norm(m.a(x))), a=nn.Linear(5, N), norm=norm, b=nn.Linear(N, 3))
    recording = watch(model, torch.randn(4, 5))
    return model, recording, find_units(recording, UnitFilter())


@pytest.mark.parametrize(
    ("norm", "centred", "factor", "shift"),
    [(nn.LayerNorm(N), True, "weight", "bias"), (nn.RMSNorm(N), False, "weight", ""), (ScaledFromOne(), False, "", "")],
)
def test_the_rule_of_a_norm(norm: nn.Module, centred: bool, factor: str, shift: str) -> None:
    model, _, structure = recorded(norm)
    ((site, rule),) = exact_rules(model, structure)
    assert site.module == "norm" and rule == NormRule(centred, (-1,), factor=factor, shift=shift)


def test_an_attribute_that_counts_the_channels_follows_and_no_other() -> None:
    model, recording, structure = recorded(ByWidth())
    ((_, rule),) = exact_rules(model, structure)
    assert rule is not None and rule.sizes in ((("width", ()), ("other", ())), (("width", ()),))
    structure = follow_norms(model, recording, structure, UnitFilter(), None)
    assert ("norm", "width", ()) in recording.size_attributes
    assert structure.norms[0].centred is False
    assert "width" in {a.attribute for a in structure.size_attributes}


def test_channels_of_a_norm_without_a_rule_stay() -> None:
    model, recording, structure = recorded(nn.LayerNorm(N))
    model.norm = ToUnitSum()  # what is recorded of a LayerNorm, and another module in its place
    assert [rule for _, rule in exact_rules(model, structure)] == [None]
    structure = follow_norms(model, recording, structure, UnitFilter(), None)
    assert not structure.groups and not recording.norms
    assert structure.refused["a.weight", 0].startswith("a norm over channels")


def test_norms_that_are_alike_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, find = [], norms._find_rule
    monkeypatch.setattr(norms, "_find_rule", lambda *args: tried.append(args[1].module) or find(*args))
    layers = {f"n{i}": nn.LayerNorm(N) for i in range(4)} | {f"l{i}": nn.Linear(N, N) for i in range(4)}
    model = Lambda(
        lambda m, x: m.head(m.n3(m.l3(m.n2(m.l2(m.n1(m.l1(m.n0(m.l0(x))))))))), **layers, head=nn.Linear(N, 2)
    )
    sparse = zg.sparsify(model, torch.randn(4, N))
    assert tried == ["n0"] and [n.module for n in sparse.structure.norms] == ["n0", "n1", "n2", "n3"]
