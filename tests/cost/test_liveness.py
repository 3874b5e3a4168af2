"""Who is live, against a plain search; how probably, against enumeration."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from zerogate.cost.live_probability import LiveProbability, liveness_of
from zerogate.cost.liveness import liveness
from zerogate.cost.terms import AxisSizes


@pytest.mark.parametrize("most", [200_000, 0], ids=["stretches", "whole"])
@pytest.mark.parametrize("cycles", [False, True])
def test_a_group_is_live_if_it_reaches_the_end(cycles: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random graphs of layers, for random open groups: the stretches between post-dominators against a plain search."""
    monkeypatch.setattr("zerogate.cost.liveness.MAX_TABLE_ENTRIES", most)
    rng = random.Random(0)
    for _ in range(300):
        groups, layers = rng.randint(1, 8), rng.randint(1, 10)
        produced: list[list[int]] = []
        readers: list[list[int]] = [[] for _ in range(groups)]
        for layer in range(layers):
            makes = rng.sample(range(groups), min(groups, rng.randint(1, 2)))
            produced.append([groups] if rng.random() < 0.2 else makes)
            for g in range(groups):
                if rng.random() < 0.3 and (cycles or g < min(produced[-1])):
                    readers[g].append(layer)

        def search(
            is_open: list[bool],
            start: list[bool],
            readers: list[list[int]] = readers,
            produced: list[list[int]] = produced,
        ) -> list[bool]:
            found, before = [*start, True], None
            while found != before:
                before = list(found)
                for g, layers in enumerate(readers):
                    found[g] |= any(is_open[h] and found[h] for layer in layers for h in produced[layer])
            return found[:-1]

        tables = liveness(groups, readers, produced)
        for _ in range(10):
            share = rng.choice([0.5, 1.0])
            is_open = [rng.random() < share for _ in range(groups)] + [True]
            state = [True] * len(tables.edges)
            for _ in range(tables.rounds):
                state = [i == 0 or any(is_open[g] and state[to] for g, to in e) for i, e in enumerate(tables.edges)]
            live = [all(state[i] for i in path) for path in tables.paths]
            reaches = search([True] * (groups + 1), [False] * groups)
            reaches = search(is_open, [not r for r in reaches])  # what leads nowhere stays
            assert share < 1 or all(live)
            if cycles:  # layers that read each other may stay
                assert all(h or not r for h, r in zip(live, reaches, strict=True))
            else:
                assert live == reaches


class Diamond(nn.Module):
    """Two branches that meet: all paths from a to the end run through d."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.d, self.e = nn.Linear(4, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.e(self.d(torch.cat([self.b(x), self.c(x)], -1).relu()).relu())


def live_of_first(sparse: zg.Sparsified, p: Tensor) -> float:
    sizes = AxisSizes.of(sparse.structure)
    live, closed = LiveProbability.of(sparse.structure, liveness_of(sparse.structure, sizes))(p)
    for group, product in zip(sparse.groups, closed.tolist(), strict=True):
        assert product == pytest.approx((1 - p[group.slice]).prod().item(), rel=1e-15)
    assert sparse.groups[0].name == "a"
    return live[0].item()


def test_the_probability_to_be_live_is_the_mean_over_all_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact where branches meet in a post-dominator; beyond the limit of the tables it is too large."""
    sparse = zg.sparsify(Diamond(), torch.randn(1, 3))
    p = 0.1 + 0.5 * torch.rand(len(sparse.logits), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = 0.0
    settings = [torch.tensor(z, dtype=torch.float64) for z in itertools.product([0, 1], repeat=len(p))]
    before = [live_of_first(sparse, z) for z in settings]
    for z, live in zip(settings, before, strict=True):
        assert live in (0, 1)
        mean += torch.where(z > 0, p, 1 - p).prod().item() * live
    assert live_of_first(sparse, p) == pytest.approx(mean, rel=1e-12)
    monkeypatch.setattr("zerogate.cost.liveness.MAX_TABLE_ENTRIES", 0)
    assert [live_of_first(sparse, z) for z in settings] == before
    assert mean + 1e-3 < live_of_first(sparse, p) < 1
