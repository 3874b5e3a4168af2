"""Integers of an exported graph that follow from what is kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support import Lambda
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import ARGUMENTS, GraphModel
from zerogate.groups.recording.record_run import watch
from zerogate.groups.trial.written_sizes import follow_written_sizes
from zerogate.modules.held_numbers import number_at
from zerogate.structure import SizeAttribute


def written_sizes(model: nn.Module, x: Tensor) -> tuple[GraphModel, list[SizeAttribute]]:
    graph = exported(model, x)
    recording = watch(graph, x)
    follow_written_sizes(graph, recording)
    sizes = list(recording.size_attributes.values())
    assert all(size.module == ARGUMENTS for size in sizes)
    assert list(recording.size_attributes) == [(s.module, s.attribute, s.entry) for s in sizes]
    return graph, sizes


def value_of(graph: GraphModel, size: SizeAttribute) -> int:
    return number_at(getattr(graph.get_submodule(ARGUMENTS), size.attribute), size.entry)


def test_a_written_size_counts_the_labels_along_it() -> None:
    def folded(m: nn.Module, x: Tensor) -> Tensor:
        return m.b(m.a(x).view(x.shape[0], 4, 6).transpose(1, 2).reshape(x.shape[0], 24))

    graph, sizes = written_sizes(Lambda(folded, a=nn.Linear(5, 24), b=nn.Linear(24, 3)), torch.randn(2, 5))
    views = [size for size in sizes if size.attribute == "of view"]
    assert [(s.entry, value_of(graph, s), tuple(s.rows.shape)) for s in views] == [((0,), 4, (4, 6)), ((1,), 6, (6, 4))]
    assert torch.equal(views[0].rows, views[1].rows.T)
    assert all(value_of(graph, size) == len(size.rows) for size in sizes)


def test_a_number_of_groups_counts_blocks_of_channels() -> None:
    def normed(m: nn.Module, x: Tensor) -> Tensor:
        return m.b(F.group_norm(m.a(x), 4).mean((2, 3)))

    model = Lambda(normed, a=nn.Conv2d(3, 12, 1), b=nn.Linear(12, 3))
    graph, sizes = written_sizes(model, torch.randn(2, 3, 4, 4))
    (groups,) = [size for size in sizes if size.attribute == "of group_norm"]
    assert value_of(graph, groups) == 4 and groups.rows.shape == (4, 3)


def test_a_factor_counts_channels_that_are_folded_into_a_size_of_the_inputs() -> None:
    """Heads folded into the batch: b · 4 follows from the batch, and 4 from the heads that are kept."""

    def heads(m: nn.Module, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        q, k, v = (layer(x).view(b, n, 4, 8).transpose(1, 2).reshape(b * 4, n, 8) for layer in (m.q, m.k, m.v))
        z = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return m.o(z.view(b, 4, n, 8).transpose(1, 2).reshape(b, n, 32))

    layers = {name: nn.Linear(12, 32) for name in "qkv"} | {"o": nn.Linear(32, 3)}
    graph, sizes = written_sizes(Lambda(heads, **layers), torch.randn(2, 5, 12))
    factors = [size for size in sizes if size.attribute.startswith("of mul")]
    assert factors and all(value_of(graph, size) == len(size.rows) == 4 for size in factors)
