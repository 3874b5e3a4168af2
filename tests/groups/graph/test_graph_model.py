"""The graph as a module whose integers are attributes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from support import Lambda
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import ARGUMENTS, GraphModel, attribute_of, integers
from zerogate.groups.trial.candidates import modules_near

ATEN = torch.ops.aten


def folded(m: nn.Module, x: Tensor) -> Tensor:
    return m.b(m.a(x).view(x.shape[0], 4, 6).transpose(1, 2).reshape(x.shape[0], 24))


@pytest.fixture
def graph() -> GraphModel:
    return exported(Lambda(folded, a=nn.Linear(5, 24), b=nn.Linear(24, 3)), torch.randn(2, 5))


def node_of(graph: GraphModel, target: object, number: int = 0) -> torch.fx.Node:
    return [node for node in graph.nodes if node.target is target][number]


def test_integers_of_a_node_have_names_and_places(graph: GraphModel) -> None:
    assert [tuple(i) for i in integers(node_of(graph, ATEN.view.default))] == [("size", 1, 4), ("size", 2, 6)]
    assert [tuple(i) for i in integers(node_of(graph, ATEN.transpose.int))] == [("dim0", None, 1), ("dim1", None, 2)]
    assert integers(node_of(graph, ATEN.linear.default)) == []


def test_an_integer_that_is_set_is_what_the_node_is_given(graph: GraphModel) -> None:
    x = torch.randn(3, 5)
    view, holder = node_of(graph, ATEN.view.default), graph.get_submodule(ARGUMENTS)
    assert getattr(holder, attribute_of(view)) == (4, 6)
    (expected,) = graph(x)
    setattr(holder, attribute_of(view), (6, 4))
    assert graph.arguments_of(view)[0][1][1:] == [6, 4]
    (y,) = graph(x)
    assert not torch.equal(y, expected)
    plain = graph.plain("Folded")
    assert torch.equal(plain(x), y) and type(plain).__name__ == "Folded"


def test_no_search_for_a_size_comes_upon_the_integers(graph: GraphModel) -> None:
    modules = dict(graph.named_modules())
    assert ARGUMENTS in modules
    assert all(ARGUMENTS not in modules_near(path, modules) for path in ("", "a", "b"))


def test_names_of_the_integers_hide_nothing_that_a_module_has(graph: GraphModel) -> None:
    assert all(
        name.startswith("of ") for name in vars(graph.get_submodule(ARGUMENTS)) if not hasattr(nn.Module(), name)
    )


def test_a_copy_shares_the_program_and_holds_its_own_tensors(graph: GraphModel) -> None:
    twin = copy.deepcopy(graph)
    assert twin.nodes == graph.nodes
    assert twin.get_submodule("a").weight is not graph.get_submodule("a").weight
    x = torch.randn(2, 5)
    assert torch.equal(*twin(x), *graph(x))
