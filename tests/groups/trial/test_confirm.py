"""The loop of trials: attributes, ties, and what stays where neither helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Lambda
from zerogate.groups.trial.trial import Trial


def runs_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    runs: list[Any] = []
    run = Trial.run

    def counted(*args: Any) -> Any:
        runs.append(args)
        return run(*args)

    monkeypatch.setattr(Trial, "run", counted)
    return runs


def test_a_network_without_written_sizes_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(monkeypatch)
    sparse = zg.sparsify(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)), torch.randn(4, 5))
    assert [g.units for g in sparse.groups] == [8, 8] and len(runs) == 1


def test_a_number_that_could_be_another_group_s_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many groups of three units can only keep one or two: some keep equally many."""
    runs = runs_of(monkeypatch)
    layers = {f"l{i}": nn.Linear(3, 3) for i in range(4)}
    model = Lambda(lambda m, x: m.l3(m.l2(m.l1(m.l0(x).view(-1, m.width)).view(-1, m.l1.out_features))), **layers)
    model.width = 3
    sparse = zg.sparsify(model, torch.randn(4, 3))
    assert len(runs) > 1
    for group in sparse.groups:
        assert group.units == 3


def test_a_literal_size_keeps_only_the_channels_that_it_counts() -> None:
    model = Lambda(
        lambda m, x: m.c(m.b(m.a(x)).view(-1, 16)), a=nn.Linear(5, 24), b=nn.Linear(24, 16), c=nn.Linear(16, 2)
    )
    sparse = zg.sparsify(model, torch.randn(4, 5))
    assert [g.name for g in sparse.groups] == ["a"]
    reason = sparse.structure.refused["b.weight", 0]
    assert reason.startswith("view to a size that is written down") and "test_confirm.py:" in reason


def test_the_same_line_is_frozen_wherever_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).view(-1, 24))

    runs = runs_of(monkeypatch)
    model = nn.Sequential(nn.Linear(5, 6), *(Block() for _ in range(12)), nn.Linear(6, 2))
    sparse = zg.sparsify(model, torch.randn(4, 5))
    assert not any("up" in name for g in sparse.groups for name in g.producers)
    assert len(runs) <= 8  # not some for each block
