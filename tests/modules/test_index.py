"""Modules and tensors by name, and copies of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from zerogate.modules.copies import copy_with, deep_copy, like, meta_copy, quick_copy
from zerogate.modules.index import (
    ModuleIndex,
    join_name,
    modules_by_name,
    named_tensors,
    owner_of,
    split_name,
    tensor_bytes,
    tied_names,
    transient_buffers,
)


class Tied(nn.Module):
    """A weight under two names, a module in two places, buffers in and out of the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.twice = nn.ModuleList([self.b, nn.BatchNorm1d(3)])
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("empty", None)


@pytest.mark.parametrize("name", ["weight", "a.weight", "a.b.weight"])
def test_names_are_taken_apart_and_joined(name: str) -> None:
    owner, attribute = split_name(name)
    assert attribute == "weight" and owner == owner_of(name) == name[: -len(".weight")]
    assert join_name(owner, attribute) == name


def test_names_are_those_of_torch() -> None:
    model = Tied()
    assert list(modules_by_name(model).items()) == list(model.named_modules())
    assert modules_by_name(model, twice=True) == dict(model.named_modules(remove_duplicate=False))
    assert {*dict(named_tensors(model))} == {*dict(model.named_parameters()), *dict(model.named_buffers())}
    assert tied_names(model)["a.weight"] == ["a.weight", "b.weight", "twice.0.weight"]
    assert transient_buffers(model) == {"cache"}
    assert tensor_bytes(model) == sum(x.numel() * x.element_size() for _, x in named_tensors(model))


def test_a_tensor_is_replaced_under_all_its_names() -> None:
    model = Tied()
    index = ModuleIndex(model)
    assert index.tensor("twice.0.weight") is model.a.weight and index.owner("b.bias") == (model.b, "bias")
    new = nn.Parameter(torch.ones(3, 3))
    assert index.put("a.weight", new) == {model.a, model.b}
    assert model.a.weight is model.b.weight is model.twice[0].weight is new
    index.put("empty", torch.ones(1))
    assert torch.equal(model.empty, torch.ones(1))
    for missing in ("a.bias", "c.weight", "a.nothing"):
        with pytest.raises(KeyError):
            index.tensor(missing)


@pytest.mark.parametrize("copied", [deep_copy, quick_copy, meta_copy, copy.deepcopy])
def test_copies_share_nothing_and_keep_ties(copied: object) -> None:
    model = Tied().eval()
    model.twice.train()
    twin = copied(model)  # type: ignore[operator]
    assert twin.a.weight is twin.b.weight is twin.twice[0].weight is not model.a.weight
    assert twin.b is twin.twice[0] and not twin.training and twin.twice.training
    assert {n: x.shape for n, x in named_tensors(twin)} == {n: x.shape for n, x in named_tensors(model)}
    assert all(x.is_meta for x in twin.parameters()) == (copied is meta_copy)


def test_a_copy_with_other_tensors() -> None:
    model = Tied()
    twin = copy_with(model, lambda name, x: nn.Parameter(x + 1) if isinstance(x, nn.Parameter) else x)
    assert torch.equal(twin.b.weight, model.a.weight + 1) and twin.cache is model.cache


def test_what_is_part_of_a_graph_is_copied_without_it() -> None:
    model = nn.Linear(2, 2)
    model.picture = model(torch.ones(1, 2))
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    for twin in (deep_copy(model), quick_copy(model)):
        assert twin.picture.grad_fn is None and torch.equal(twin.picture, model.picture)


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(2, 3),
        torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.empty(3, 2).T,
        torch.empty(4, 4)[::2],
        torch.empty(2, 1).expand(2, 3),
        torch.empty((), dtype=torch.int32),
    ],
)
def test_a_tensor_without_data_has_the_same_form(x: Tensor) -> None:
    assert like(x).is_meta
    assert (like(x).shape, like(x).stride(), like(x).dtype) == (x.shape, torch.empty_like(x).stride(), x.dtype)
