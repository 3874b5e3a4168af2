"""What torch's layers state once their tensors are cut, class by class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.cutting.cut import cut, sliced
from zerogate.cutting.layer_sizes import LAYER_SIZES, state_sizes
from zerogate.cutting.plan import Plan, make_plan
from zerogate.structure import Group, SizeAttribute, Structure

INDICES = torch.tensor([0, 2])
BOTH, FIRST, SECOND = (0, 1), (0,), (1,)
CASES: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, object]]] = {
    "Linear": (nn.Linear(5, 4), BOTH, {"in_features": 2, "out_features": 2}),
    "Conv1d": (nn.Conv1d(5, 4, 3), BOTH, {"in_channels": 2, "out_channels": 2}),
    "Conv2d": (nn.Conv2d(5, 4, 3), BOTH, {"in_channels": 2, "out_channels": 2}),
    "Conv3d": (nn.Conv3d(5, 4, 3), SECOND, {"in_channels": 2, "out_channels": 4}),
    "grouped Conv2d": (nn.Conv2d(8, 6, 3, groups=2), SECOND, {"in_channels": 4, "out_channels": 6}),
    "ConvTranspose2d": (nn.ConvTranspose2d(5, 4, 3), BOTH, {"in_channels": 2, "out_channels": 2}),
    "grouped ConvTranspose2d": (
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        SECOND,
        {"in_channels": 8, "out_channels": 4},
    ),
    "Bilinear": (nn.Bilinear(5, 4, 3), (0, 1, 2), {"in1_features": 2, "in2_features": 2, "out_features": 2}),
    "EmbeddingBag": (nn.EmbeddingBag(7, 4), SECOND, {"embedding_dim": 2, "num_embeddings": 7}),
    "Embedding": (nn.Embedding(7, 4), SECOND, {"embedding_dim": 2, "num_embeddings": 7}),
    "BatchNorm1d": (nn.BatchNorm1d(4), FIRST, {"num_features": 2}),
    "BatchNorm2d without weight": (nn.BatchNorm2d(4, affine=False), FIRST, {"num_features": 2}),
    "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), FIRST, {"num_features": 2}),
    "LayerNorm": (nn.LayerNorm(4), FIRST, {"normalized_shape": (2,)}),
    "RMSNorm": (nn.RMSNorm(4), FIRST, {"normalized_shape": (2,)}),
    "GroupNorm": (nn.GroupNorm(2, 4), FIRST, {"num_channels": 2}),
    "PReLU": (nn.PReLU(4), FIRST, {"num_parameters": 2}),
    "GRU": (nn.GRU(3, 4), SECOND, {"input_size": 2, "hidden_size": 4, "proj_size": 0}),
    "GRUCell": (nn.GRUCell(3, 4), SECOND, {"input_size": 2, "hidden_size": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_states_what_its_tensors_hold(name: str) -> None:
    layer, dims, expected = CASES[name]
    tensor = next(
        n for n in ("weight", "running_mean", "weight_ih_l0", "weight_ih") if getattr(layer, n, None) is not None
    )
    cut(layer, Plan({(tensor, dim): INDICES for dim in dims}))
    assert {attribute: getattr(layer, attribute) for attribute in expected} == expected


def test_every_class_of_the_table_is_tried() -> None:
    tried = [kind for kind in LAYER_SIZES if any(isinstance(layer, kind) for layer, _, _ in CASES.values())]
    assert tried == [*LAYER_SIZES]


def test_other_layers_are_left_as_they_are() -> None:
    layer = nn.CrossEntropyLoss(torch.ones(4))
    before = dict(vars(layer))
    state_sizes(layer)
    assert vars(layer) == before


def test_a_layer_that_computes_its_weight_is_refused() -> None:
    layer = nn.Linear(3, 2)
    del layer.weight
    with pytest.raises(zg.ZerogateError, match="this Linear holds no weight of its own to take its sizes from"):
        state_sizes(layer)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_is_sliced_along_several_dims_at_once(device: str) -> None:
    weight = nn.Parameter(torch.randn(4, 3, 2, 2, device=device).to(memory_format=torch.channels_last), False)
    new = sliced(weight, {0: torch.tensor([1, 3]), 1: torch.tensor([0, 2])})
    assert isinstance(new, nn.Parameter) and not new.requires_grad and new.device == weight.device
    assert new.shape == (2, 2, 2, 2) and new.is_contiguous(memory_format=torch.channels_last)
    if device == "cpu":
        assert torch.equal(new, weight[[1, 3]][:, [0, 2]])
        assert torch.equal(weight.detach().clone(), weight)
    assert not isinstance(sliced(torch.zeros(4), {0: INDICES}), nn.Parameter)


def test_a_plan_says_what_stays_and_what_is_stated() -> None:
    """Units 0 … 3; the second and third go. Two entries of one attribute count them, another attribute is right already."""
    model = nn.Linear(4, 6)
    model.width, model.window, model.other = 4, (4, 9, 4), 2
    units = torch.arange(4)
    rows = units[:, None]
    structure = Structure(
        {("weight", 1): units, ("bias", 0): torch.full((6,), -1)},
        (Group("group", slice(0, 4), (), ()),),
        (),
        frozenset(),
        {},
        size_attributes=(
            SizeAttribute("", "width", (), rows),
            SizeAttribute("", "window", (0,), rows),
            SizeAttribute("", "window", (2,), rows),
            SizeAttribute("", "other", (), rows),
        ),
    )
    plan = make_plan(model, structure, torch.tensor([True, False, False, True]))
    assert {axis: indices.tolist() for axis, indices in plan.keep.items()} == {("weight", 1): [0, 3]}
    assert plan.attributes == {("", "width"): 2, ("", "window"): [2, 9, 2]}
    assert not plan.select and not plan.attention
    small = cut(model, plan)
    assert (small.width, small.window, small.in_features) == (2, (2, 9, 2), 2)
    assert not make_plan(model, structure, torch.ones(4, dtype=torch.bool)).keep
