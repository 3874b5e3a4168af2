"""Making a network fit: how many gates change, which, and by how much."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from random_nets import RandomNetwork
from zerogate.gates.gate import Gate
from zerogate.objectives.budget import Budget
from zerogate.objectives.projection import MARGIN, best_units, beyond_threshold, fitting_number, project, settle
from zerogate.structure import Group


class Numbers:
    """A stand-in for a cost model: unit u costs ``costs[u]``."""

    def __init__(self, costs: list[int]) -> None:
        self.costs, self.units = torch.tensor(costs), len(costs)
        self.dense = zg.Cost(sum(costs), 0)

    def exact(self, is_open: Tensor) -> zg.Cost:
        return zg.Cost(int(self.costs[is_open].sum()), 0)


def budget(costs: list[int], share: float) -> Budget:
    return Budget.of_share("params", Numbers(costs), share)  # type: ignore[arg-type]


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3))


def test_the_largest_number_that_fits_is_found_for_every_limit() -> None:
    costs = [7, 1, 1, 12, 3, 3, 5]
    order = torch.tensor([3, 0, 6, 4, 5, 1, 2])
    running = [0, *torch.tensor(costs)[order].cumsum(0).tolist()]
    for limit in range(sum(costs) + 1):
        found = Budget.of_count("params", Numbers(costs), limit).largest(order)  # type: ignore[arg-type]
        assert found == max(n for n, cost in enumerate(running) if cost <= limit)


def test_a_number_that_fits_is_left_alone_and_others_change_least() -> None:
    order = torch.arange(100)
    half = budget([1] * 100, 0.5)
    numbers = {n: fitting_number(order, n, half, margin=0.02) for n in (0, 47, 48, 49, 50, 51, 100)}
    assert numbers == {0: 49, 47: 49, 48: 48, 49: 49, 50: 50, 51: 50, 100: 50}


def test_units_too_large_for_the_margin_stay_closed() -> None:
    order, wide = torch.arange(4), budget([10, 10, 10, 10], 0.7)  # 28 may be left, and units come in tens
    assert [fitting_number(order, n, wide) for n in range(5)] == [2, 2, 2, 2, 2]


def test_projecting_returns_logits_and_changes_none() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, -1.0])
    groups = [Group("a", slice(0, 2), (), ()), Group("b", slice(2, 4), (), ())]
    new, changed = project(logits, groups, zg.SoftMask(), budget([1, 1, 1, 1], 0.5))
    assert logits.tolist() == [3.0, 1.0, 2.0, -1.0]
    assert changed == 1 and (new > 0).tolist() == [True, False, True, False]  # the best of each group close last
    assert new[[0, 2, 3]].tolist() == [3.0, 2.0, -1.0]


def test_settling_opens_the_best_unit_of_a_group_that_closed_wholly() -> None:
    logits = torch.tensor([3.0, 1.0, -2.0, -1.0])
    groups = [Group("a", slice(0, 2), (), ()), Group("b", slice(2, 4), (), ())]
    assert best_units(logits, groups).tolist() == [0, 3]
    new, changed = settle(logits, groups, zg.SoftMask(), budget([1, 1, 1, 1], 0.75))
    assert changed == 0 and (new > 0).tolist() == [True, True, False, True]


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(), zg.HardConcrete(low=-0.01, high=1.5)])
@pytest.mark.parametrize("opens", [True, False])
def test_logits_end_just_beyond_the_threshold_in_their_order(gate: Gate, opens: bool) -> None:
    start = torch.tensor([-6.0, -9.0, -60.0]) if opens else torch.tensor([60.0, 3.0, 0.5])
    beyond = beyond_threshold(gate, start, opens)
    assert ((gate.mask(beyond) > 0) == opens).all()
    assert beyond.tolist() == sorted(beyond.tolist(), reverse=True) and len({*beyond.tolist()}) == 3
    back = beyond - (1 if opens else -1) * 0.01 * (1 + beyond.abs())
    assert ((gate.mask(back) > 0) != opens).all()


def by_logits(sparse: zg.Sparsified, n: int) -> float:
    """Cost with the n highest logits open."""
    is_open = torch.zeros(len(sparse.logits), dtype=torch.bool)
    is_open[sparse.logits.detach().argsort(descending=True, stable=True)[:n]] = True
    cost = sparse.cost_model.exact(is_open)
    return getattr(cost, sparse.objective.over)


@pytest.mark.parametrize("seed", range(40))
def test_projection_ends_at_most_a_point_or_a_unit_under(seed: int) -> None:
    """On random networks, from random gates, for random targets: at or under, no unit more than needed is changed."""
    generator = torch.Generator().manual_seed(seed)
    model = RandomNetwork(seed)
    x = model.inputs(2, generator)
    unit = "weight" if seed % 4 == 3 else "channel"
    gate = zg.SoftMask() if seed % 2 else zg.HardConcrete()
    try:
        sparse = zg.sparsify(model, x, gate=gate, unit=unit)
    except zg.WatchError as error:
        pytest.skip(str(error))
    over = ("params", "macs")[seed % 3 % 2]
    dense = getattr(sparse.dense_cost, over)
    least = by(sparse, over, torch.zeros(len(sparse.logits), dtype=torch.bool)) / dense
    wanted = least + (1 - least) * (0.01 + 0.99 * torch.rand((), generator=generator).item())
    sparse.objective = zg.Target(**{over: min(wanted, 1.0)})
    with torch.no_grad():
        drawn = torch.randn(len(sparse.logits), generator=generator) * 3
        sparse.logits.copy_(drawn + torch.randn((), generator=generator) * 3)
    before, logits = sparse.is_open(), sparse.logits.detach().clone()
    best = torch.stack([g.slice.start + logits[g.slice].argmax() for g in sparse.groups])
    rank = before.int()
    rank[best] *= 2  # the last to close: one unit of each group
    order = torch.tensor(sorted(range(len(logits)), key=lambda i: (-int(rank[i]), -float(logits[i]))))
    number = int(before.sum())
    changed = sparse.project()
    after = sparse.is_open()
    left = by(sparse, over, after)
    limit = sparse.objective.share * dense
    assert changed == int((before != after).sum()) == sparse.objective.projected
    assert torch.equal(sparse.logits[before == after], logits[before == after])
    n = int(after.sum())
    assert after[order[:n]].all()  # the most open ones, and of each group the most open
    assert left <= limit

    def cost(n: int) -> int:
        is_open = torch.zeros_like(after)
        is_open[order[:n]] = True
        return by(sparse, over, is_open)

    if n < number:
        assert cost(n + 1) > limit  # not one more was closed than needed
    if n > number:
        assert cost(n - 1) < limit - MARGIN * dense  # nor opened
    if left < limit - MARGIN * dense and n < len(order):
        assert cost(n + 1) > limit  # the next unit is larger than what is missing
    assert sparse.project() == 0


def by(sparse: zg.Sparsified, over: str, is_open: Tensor) -> int:
    return getattr(sparse.cost_model.exact(is_open), over)


def test_gates_near_the_edge_change_least() -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), objective=zg.Target(params=0.5))
    with torch.no_grad():
        sparse.logits[:] = torch.linspace(-9, 9, len(sparse.logits))
    sparse.objective.share = 0.99
    opened = sparse.is_open()
    assert sparse.project() > 0
    new = sparse.gate.mask(sparse.logits.detach())[sparse.is_open() & ~opened]
    assert 0 < new.max() < 1e-3  # open, and all but 0: the network computes what it did
