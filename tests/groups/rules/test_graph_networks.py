"""Graph networks in plain torch: messages gathered from nodes, weighed, and reduced at nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_checks import Net, check_rule, parameter, refused

NODES, EDGES = 6, 14
X = torch.randn(NODES, 4, generator=torch.Generator().manual_seed(0))
ENDS = torch.randint(NODES, (2, EDGES), generator=torch.Generator().manual_seed(1))
ENDS[1].copy_(ENDS[1].sort().values)


def spread(index: Tensor, x: Tensor) -> Tensor:
    return index[:, None].expand_as(x)


def counts(index: Tensor) -> Tensor:
    return torch.bincount(index, minlength=NODES)


REDUCE: dict[str, Callable[..., Tensor]] = {
    "scatter_add": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_add(0, spread(to, y), y),
    "scatter_add_": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_add_(0, spread(to, y), y),
    "index_add": lambda y, to: y.new_zeros(NODES, y.shape[1]).index_add(0, to, y),
    "index_add_": lambda y, to: torch.zeros(NODES, y.size(-1), dtype=y.dtype).index_add_(0, to, y),
    "sum": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_reduce(0, spread(to, y), y, "sum"),
    "mean": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_reduce_(
        0, spread(to, y), y, "mean", include_self=False
    ),
    "amax": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_reduce(
        0, spread(to, y), y, "amax", include_self=False
    ),
    "amin": lambda y, to: y.new_zeros(NODES, y.shape[1]).index_reduce(0, to, y, "amin", include_self=False),
    "degrees": lambda y, to: (
        y.new_zeros(NODES, y.shape[1]).scatter_add(0, spread(to, y), y)
        / y.new_zeros(NODES, y.shape[1]).scatter_add(0, spread(to, y), torch.ones_like(y)).clamp(min=1)
    ),
    "segments": lambda y, to: torch.segment_reduce(y, "max", lengths=counts(to), initial=0.0),
    "accumulated": lambda y, to: y.new_zeros(NODES, y.shape[1]).index_put((to,), y, accumulate=True),
    "view expanded": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_add(
        0, to.view(-1, 1).expand(-1, y.size(1)), y
    ),
    "repeated": lambda y, to: y.new_zeros(NODES, y.shape[1]).scatter_add(0, to.view(-1, 1).repeat(1, y.size(1)), y),
}


@pytest.mark.parametrize("kind", REDUCE)
def test_messages_are_reduced_at_nodes(kind: str) -> None:
    def forward(m: Net, x: Tensor, ends: Tensor) -> Tensor:
        x = m.a(x).relu()
        return m.head(m.b(REDUCE[kind](x[ends[0]], ends[1]) + x).relu())

    model = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 7), head=nn.Linear(7, 3))
    check_rule(model, X, ENDS, units={"a": 8, "b": 7}, closings=2)


PICK: dict[str, Callable[..., Tensor]] = {
    "index": lambda x, i: x[i],
    "index_select": lambda x, i: x.index_select(0, i),
    "gather": lambda x, i: x.gather(0, i[:, None].expand(-1, x.shape[1])),
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i[:, None], 0),
    "embedding": lambda x, i: F.embedding(i, x),
}


@pytest.mark.parametrize("kind", [k for k in PICK if k != "embedding"])
def test_messages_are_picked_from_nodes(kind: str) -> None:
    def forward(m: Net, x: Tensor, ends: Tensor) -> Tensor:
        y = PICK[kind](m.a(x).relu(), ends[0]) * m.edge(ends[1])
        return m.head(y.new_zeros(NODES, y.shape[1]).index_add_(0, ends[1], y))

    model = Net(forward, a=nn.Linear(4, 8), edge=nn.Embedding(NODES, 8), head=nn.Linear(8, 3))
    check_rule(model, X, ENDS, units={"a": 8}, closings=2)


def normalised(ends: Tensor) -> Tensor:
    degree = counts(ends[1]).clamp(min=1).to(torch.float64).pow(-0.5)
    return degree[ends[0]] * degree[ends[1]]


class GCN(nn.Module):
    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(inputs, out, bias=False), parameter(out)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        x = self.linear(x)
        message = normalised(ends).view(-1, 1) * x.index_select(0, ends[0])
        return x.new_zeros(x.shape).index_add_(0, ends[1], message) + self.bias


class SAGE(nn.Module):
    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(inputs, out), nn.Linear(inputs, out, bias=False)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        mean = torch.zeros_like(x).scatter_reduce(
            0, spread(ends[1], x[ends[0]]), x[ends[0]], "mean", include_self=False
        )
        return F.normalize(self.own(x) + self.others(mean), dim=-1)


class GIN(nn.Module):
    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(1))
        self.net = nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, out))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.net((1 + self.eps) * x + torch.zeros_like(x).index_add(0, ends[1], x[ends[0]]))


class GAT(nn.Module):
    """Heads by the size of a head; scores from the two ends."""

    def __init__(self, inputs: int, out: int, size: int = 4) -> None:
        super().__init__()
        self.size, self.linear = size, nn.Linear(inputs, out, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(1, out // size, size)) for _ in range(2))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        x = self.linear(x).unflatten(-1, (-1, self.size))
        source, target = (x * self.source).sum(-1), (x * self.target).sum(-1)
        score = F.leaky_relu(source[ends[0]] + target[ends[1]], 0.2)
        index = spread(ends[1], score)
        largest = score.new_full((NODES, score.shape[1]), -1e9).scatter_reduce(0, index, score, "amax")
        score = (score - largest[ends[1]]).exp()
        total = score.new_zeros(NODES, score.shape[1]).scatter_add_(0, index, score)
        share = score / (total[ends[1]] + 1e-16)
        out = x.new_zeros(x.shape).index_add(0, ends[1], x[ends[0]] * share.unsqueeze(-1))
        return out.flatten(1)


class PNA(nn.Module):
    """Several reductions, scaled by degree, concatenated."""

    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(2 * inputs, inputs), nn.Linear(4 * inputs, out)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        message = self.before(torch.cat([x[ends[0]], x[ends[1]]], -1))
        index = spread(ends[1], message)
        kinds = [
            message.new_zeros(x.shape[0], message.shape[1]).scatter_reduce(0, index, message, kind, include_self=False)
            for kind in ("mean", "amax", "amin")
        ]
        degree = counts(ends[1]).to(x.dtype).add(1).log()[:, None]
        return self.after(torch.cat([*kinds, kinds[0] * degree], -1))


LAYERS: dict[str, tuple[Any, int]] = {
    "GCN": (GCN, 8),
    "GIN": (GIN, 8 + 6 + 6),
    "GAT": (GAT, 2),
    "PNA": (PNA, 4 + 8 + 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_graph_networks(name: str) -> None:
    kind, units = LAYERS[name]

    def forward(m: Net, x: Tensor, ends: Tensor) -> Tensor:
        return m.last(m.first(x, ends).relu(), ends).mean(0, keepdim=True)

    last = GCN(8, 3) if name == "GAT" else kind(8, 3)
    model = Net(forward, first=kind(4, 8), last=last)
    check_rule(model, X, ENDS, units=units, closings=2, witness=False)


def test_a_layer_that_normalises_its_result_keeps_it() -> None:
    model = Net(lambda m, x, ends: m.last(m.first(x, ends).relu(), ends), first=SAGE(4, 8), last=SAGE(8, 3))
    reasons = refused(model, X, ENDS)
    assert "linalg_vector_norm over channels" in reasons[""]
    normalised_apart = Net(
        lambda m, x, ends: m.head(m.norm(m.first(x, ends)).relu()),
        first=Net(
            lambda m, x, ends: m.own(x) + m.others(x[ends[0]].mean(0)), own=nn.Linear(4, 8), others=nn.Linear(4, 8)
        ),
        norm=Net(lambda m, x: F.normalize(x, dim=-1)),
        head=nn.Linear(8, 3),
    )
    check_rule(normalised_apart, X, ENDS, units=8, closings=2, witness=False)


@pytest.mark.parametrize("how", ["sparse.mm", "matmul", "mm", "dense"])
def test_a_product_with_the_adjacency(how: str) -> None:
    adjacency = torch.zeros(NODES, NODES)
    adjacency[ENDS[1], ENDS[0]] = 0.5

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        if how == "sparse.mm":
            x = torch.sparse.mm(m.adjacency, x)
        elif how == "mm":
            x = torch.mm(m.adjacency, x)
        else:
            x = m.adjacency @ x
        return m.head(x.relu())

    model = Net(forward, a=nn.Linear(4, 8), head=nn.Linear(8, 3))
    model.register_buffer("adjacency", adjacency if how == "dense" else adjacency.to_sparse())
    check_rule(model, X, units={"a": 8}, closings=2, witness=False)


def test_the_adjacency_as_an_input() -> None:
    adjacency = torch.eye(NODES).to_sparse()
    model = Net(lambda m, x, a: m.head(torch.sparse.mm(a, m.a(x)).relu()), a=nn.Linear(4, 8), head=nn.Linear(8, 3))
    check_rule(model, X, adjacency, units={"a": 8}, closings=2, witness=False)
