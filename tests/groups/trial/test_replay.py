"""Runs without data and trial runs: that what saves time finds the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly
from zerogate.groups.recording.record_run import watch
from zerogate.groups.trial.trial import Trial


class Decoys(nn.Module):
    """Takes a width from one of many attributes that hold its number, some of which it needs as they are."""

    def __init__(self, also: int, needed: str) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 24), nn.Linear(24, 3)
        for i in range(also):
            setattr(self, f"width_{i}", 24)
        self.needed = needed

    def forward(self, x: Tensor) -> Tensor:
        if self.width_0 != 24:
            raise ValueError("it is too narrow")
        return self.two(self.one(x).view(-1, getattr(self, self.needed)))


@pytest.mark.parametrize("needed", [f"width_{i}" for i in range(1, 10)])
def test_one_attribute_among_many(needed: str) -> None:
    model = Decoys(10, needed)
    sparse = zg.sparsify(model, torch.randn(4, 5))
    assert [(r.attribute, r.entry) for r in sparse.structure.size_attributes] == [(needed, None)]
    close_randomly(sparse, torch.Generator().manual_seed(0))
    assert getattr(sparse.compact(), needed) == int(sparse.kept().sum())


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 24), nn.Linear(24, 3)
        for i in range(10):
            setattr(self, f"width_{i}", 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).view(-1, 24))


def test_attributes_that_nothing_reads_are_tried_at_once(monkeypatch: Any) -> None:
    runs, run = [], Trial.run

    def counted(*args: Any) -> Any:
        runs.append(args)
        return run(*args)

    monkeypatch.setattr(Trial, "run", counted)
    with pytest.raises(zg.WatchError, match="view to a size that is written down"):
        zg.sparsify(Literal(), torch.randn(4, 5))
    assert len(runs) <= 4


class Tokens(nn.Module):
    """Looks at its tokens in ways whose shape-only versions know no values."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)
        self.body = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        if 8 in ids[:, [-1, 0]]:
            raise ValueError("padding")
        steps = torch.zeros(ids.shape[1], dtype=torch.int64, device=ids.device)
        seen = steps.view(-1, 1)
        steps += 1  # what was made of it before changes, too
        if int(seen.sum()) != len(steps) or int((ids >= 0).nonzero()[:, 0].max()) != len(ids) - 1:
            raise ValueError("something else was computed")
        return self.head(self.body(self.table(ids)).relu())


def test_values_of_tokens_are_known_without_data() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert watch(Tokens(), {"ids": ids}).meta
    sparse = zg.sparsify(Tokens(), {"ids": ids})
    close_randomly(sparse, torch.Generator().manual_seed(0))
    sparse.compact()


class Fills(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        ids.clamp_(max=3)
        return self.head(self.table(ids))


def test_inputs_stay_as_they_are() -> None:
    ids = torch.tensor([[1, 7, 3]])
    zg.sparsify(Fills(), ids)
    assert ids.tolist() == [[1, 7, 3]]
