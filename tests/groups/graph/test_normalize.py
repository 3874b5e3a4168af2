"""The form that graphs of torch.export are brought into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, fx, nn

from support import Lambda
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import GraphModel, integers
from zerogate.modules.internals import assert_metadata

ATEN = torch.ops.aten


def graph_of(forward: Callable[[nn.Module, Tensor], Tensor], *shape: int) -> GraphModel:
    model = Lambda(forward, a=nn.Linear(5, 12), b=nn.Linear(12, 3))
    x = torch.randn(*(shape or (2, 5)))
    graph = exported(model, x)
    for inputs in (x, torch.cat([x, x])):
        (y,) = graph(inputs)
        assert torch.equal(y, model(inputs))
    return graph


def nodes(graph: GraphModel, target: object) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is target]


def numbers(node: fx.Node) -> list[int]:
    return [number.value for number in integers(node)]


def test_equal_pieces_state_their_sizes() -> None:
    graph = graph_of(lambda m, x: m.b(torch.cat(m.a(x).chunk(3, 1)[::-1], 1)))
    (split,) = nodes(graph, ATEN.split_with_sizes.default)
    assert numbers(split) == [4, 4, 4, 1]


def test_slices_from_the_end_are_counted_from_the_start() -> None:
    graph = graph_of(lambda m, x: m.b(torch.cat([(y := m.a(x))[:, -3:], y.narrow(1, -12, 9)], 1)))
    sliced = [numbers(node) for node in nodes(graph, ATEN.slice.Tensor)]
    assert [1, 9, 12, 1] in sliced and [1, 0, 9, 1] in sliced


def test_tensors_of_one_number_have_fixed_sizes_and_are_constants() -> None:
    graph = graph_of(lambda m, x: m.b(m.a(x) + torch.full((x.shape[0], 12), 0.5)))
    assert not nodes(graph, ATEN.full.default)
    (constant,) = [x for name, x in graph.named_buffers() if name.startswith("constant_")]
    assert constant.shape == (1, 12) and bool((constant == 0.5).all())
    (expand,) = nodes(graph, ATEN.expand.default)
    assert expand.args[1] == [nodes(graph, ATEN.sym_size.int)[0], -1]


def test_constants_are_made_again_in_the_precision_of_the_model_that_is_held() -> None:
    graph = graph_of(lambda m, x: m.b(m.a(x) * torch.arange(1, 13, device=x.device).to(x.dtype).sqrt()))
    assert graph.constant_0.dtype == torch.float32
    twin = Lambda(lambda m, x: x, a=nn.Linear(5, 12), b=nn.Linear(12, 3)).double()
    held = graph.holding(twin, nullcontext())
    assert held.constant_0.dtype == torch.float64 and graph.constant_0.dtype == torch.float32
    assert held.get_submodule("a").weight is twin.a.weight


def test_checks_of_types_and_devices_go_and_those_of_inputs_stay() -> None:
    graph = graph_of(lambda m, x: m.b(m.a(x).to(torch.float32).relu()))
    targets = Counter(node.target for node in graph.nodes)
    assert not targets[assert_metadata]
    assert not any(node.op == "call_module" for node in graph.nodes)


def test_regions_without_gradients_are_in_line() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = m.a(x).mean(0)
        return m.b(m.a(x) - shift)

    graph = graph_of(forward)
    assert len(nodes(graph, ATEN.mean.dim)) == 1


class Lines(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def test_nodes_know_the_module_and_the_line_that_they_come_from() -> None:
    graph = exported(Lines(), torch.randn(2, 5))
    origins, spans = graph._program.origins, graph._program.spans
    first, last = (origins[node] for node in nodes(graph, ATEN.linear.default))
    assert (first.module, last.module) == ("a", "b")
    (relu,) = nodes(graph, ATEN.relu.default)
    file, line = origins[relu].line
    assert origins[relu].module == "" and file == __file__ and line == Lines.forward.__code__.co_firstlineno + 1
    assert [node.target for node in spans["a"]] == [ATEN.linear.default]
    inputs, alone = first.begins["a"]
    assert alone and [node.op for node in inputs] == ["placeholder"]


def test_a_part_of_the_graph_runs_by_itself() -> None:
    graph = graph_of(lambda m, x: m.b(m.a(x).relu()))
    twin = nn.Linear(5, 12)
    part = graph.part("a", twin)
    assert part is not None
    x = torch.randn(3, 5)
    assert torch.equal(part(x), twin(x))
    assert graph.part("missing", twin) is None
