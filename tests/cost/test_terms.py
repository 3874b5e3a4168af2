"""Sizes of axes and products of them, against the shapes of a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import zerogate as zg
from support import Residual, count_macs
from zerogate.cost.channels import ChannelCost
from zerogate.cost.model import CostModel
from zerogate.cost.terms import AxisSizes, Terms
from zerogate.structure import Structure


def network(model: nn.Module, x: torch.Tensor) -> tuple[Structure, dict[str, torch.Size]]:
    return zg.sparsify(model, x).structure, {name: p.shape for name, p in model.named_parameters()}


def all_kept(structure: Structure) -> torch.Tensor:
    return torch.tensor([g.units for g in structure.groups], dtype=torch.float64)


def test_axes_have_their_sizes_where_everything_is_kept() -> None:
    model = Residual()
    structure, _ = network(model, torch.randn(2, 2, 5, 5))
    sizes = AxisSizes.of(structure)(all_kept(structure))
    assert sizes.tolist() == [*(model.state_dict()[name].shape[dim] for name, dim in structure.axes), 1]


def test_terms_count_the_dense_network() -> None:
    model, x = Residual(), torch.randn(2, 2, 5, 5)
    structure, shapes = network(model, x)
    cost = Terms.of(structure, shapes).cost(AxisSizes.of(structure)(all_kept(structure)))
    assert cost.params.item() == sum(p.numel() for p in model.parameters())
    assert cost.macs.item() == count_macs(model, x)


@pytest.mark.parametrize("model", [Residual(), zg.models.googlenet()], ids=["residual", "googlenet"])
def test_quadratic_forms_are_the_terms(model: nn.Module) -> None:
    structure, shapes = network(model, torch.randn(2, 2 if isinstance(model, Residual) else 3, 32, 32))
    terms, sizes = Terms.of(structure, shapes), AxisSizes.of(structure)
    assert terms.quadratic
    forms = terms.quadratic_forms(sizes)
    n = all_kept(structure) * torch.rand(len(structure.groups), dtype=torch.float64)
    cost, n = terms.cost(sizes(n)), torch.cat([n, n.new_ones(1)])
    for over, m in forms.items():
        assert torch.equal(m, m.T)
        assert (n @ m @ n).item() == pytest.approx(getattr(cost, over).item(), rel=1e-12)


def test_terms_of_three_axes_are_counted_by_the_plain_ops() -> None:
    """A layer that runs once for each channel of a third axis."""
    model = nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 6)
    )
    structure, shapes = network(model, torch.randn(1, 4))
    calls = list(structure.calls)
    calls[1] = replace(calls[1], repeats=calls[2].produces)
    structure = replace(structure, calls=tuple(calls))
    assert not Terms.of(structure, shapes).quadratic
    cost = ChannelCost(structure, shapes)
    assert cost.dense.macs == 4 * 3 + 3 * 2 * 5 + 2 * 5 + 5 * 6
    p = torch.rand(cost.units, dtype=torch.float64)
    assert cost.weighted(p, "macs", 0.5) == CostModel.weighted(cost, p, "macs", 0.5)
