"""What cannot be compacted is refused by `sparsify`, with the reason, and only that."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from zerogate.compaction.cuttable import ClassModel
from zerogate.compaction.first_compaction import refused_groups
from zerogate.groups.find import find_groups
from zerogate.groups.units import UnitFilter
from zerogate.masking.unit import CHANNEL, Layout, Options
from zerogate.structure import Structure


class Chain(nn.Module):
    """Three hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


def layout_of(model: nn.Module, structure: Structure) -> Layout:
    return CHANNEL.layout(structure, dict(model.named_parameters()), Options())


def found(model: nn.Module, x: Tensor) -> Structure:
    return find_groups(model, x, UnitFilter(kinds={"channel"}))


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_nothing_is_refused_where_all_is_well() -> None:
    model = Chain()
    assert refused_groups(ClassModel(model), X, layout_of(model, found(model, X))) == {}


def test_a_group_with_an_axis_missing_is_refused_alone() -> None:
    model = Chain()
    structure = found(model, X)
    axes = {axis: units for axis, units in structure.axes.items() if axis != ("c.weight", 1)}  # b's reader is forgotten
    refused = refused_groups(ClassModel(model), X, layout_of(model, replace(structure, axes=axes)))
    assert [*refused] == ["b"] and "does not run: RuntimeError: mat1 and mat2" in refused["b"]
    rest = structure.without(refused)
    assert [g.name for g in rest.groups] == ["a", "c"] and rest.refused["b.weight", 0] == refused["b"]
    assert refused_groups(ClassModel(model), X, layout_of(model, rest)) == {}


@pytest.fixture
def forgotten_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `sparsify` believe that nothing of c's weight goes with the channels of b."""

    def find(model: nn.Module, *args: object, **options: object) -> Structure:
        structure = find_groups(model, *args, **options)  # type: ignore[arg-type]
        return replace(structure, axes={a: u for a, u in structure.axes.items() if a != ("c.weight", 1)})

    monkeypatch.setattr(sys.modules["zerogate.sparsify"], "find_groups", find)


def test_sparsify_refuses_what_fails_and_keeps_the_rest(forgotten_reader: None) -> None:
    sparse = zg.sparsify(Chain(), X)
    assert [g.name for g in sparse.groups] == ["a", "c"]
    (row,) = [row for row in sparse.report().rows if row.layer == "b"]
    assert row.status == "refused" and "does not run: RuntimeError: mat1 and mat2 shapes" in row.reason
    sparse.logits.data.uniform_(-8, 8, generator=torch.Generator().manual_seed(1))
    sparse.compact()


def test_without_the_comparison_compact_names_the_layer_to_exclude(forgotten_reader: None) -> None:
    sparse = zg.sparsify(Chain(), X, verify=False)
    sparse.logits.data[:] = torch.where(torch.arange(len(sparse.logits)) % 2 == 0, 8.0, -8.0)
    with pytest.raises(zg.CompactionError, match=r"does not run: RuntimeError: mat1.*exclude=\['b'\]"):
        sparse.compact()
    sparse.detach()
    assert [g.name for g in zg.sparsify(sparse.model, X, verify=False, exclude=["b"]).groups] == ["c"]


def test_the_model_and_random_numbers_are_left_as_they_were() -> None:
    model = Chain().train()
    before, state = {name: p.clone() for name, p in model.named_parameters()}, torch.random.get_rng_state()
    zg.sparsify(model, X, gate=zg.Magnitude(density=0.5))
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training and all(p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_outputs_with_nan_are_not_compared() -> None:
    model = Chain()
    with torch.no_grad():
        model.d.bias.fill_(float("nan"))
    assert len(zg.sparsify(model, X).groups) == 3
