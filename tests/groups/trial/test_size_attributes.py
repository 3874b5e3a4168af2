"""Attributes that sizes come from: found by bisection among candidates, and followed from then on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from hand_made import Chain, along, step_of
from support import close_randomly
from zerogate.groups.find import find_groups
from zerogate.groups.trial.replay import Divergence, OpCall
from zerogate.groups.trial.size_attributes import find_size_attribute
from zerogate.groups.trial.sizes import Sizes
from zerogate.groups.trial.trial import Trial
from zerogate.groups.units import UnitFilter
from zerogate.structure import Structure


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
    assert [(r.attribute, r.entry) for r in sparse.structure.size_attributes] == [(needed, ())]
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
    assert not find_groups(Literal(), torch.randn(4, 5), UnitFilter()).units
    assert len(runs) <= 4


class Stub(Trial):
    """A trial whose runs diverge at its one view of 24 channels until certain attributes follow, and no others."""

    def __init__(self, model: nn.Module, needed: set[str], read: set[str] | None = None) -> None:
        chain = Chain(24, 3)
        labels = along(chain.made[0], (2, 24), 1)
        view = step_of(torch.ops.aten.view.default, (None, [2, 24]), [labels], [labels])
        chain.recording.steps += [view, view]
        super().__init__(model, torch.empty(0), chain.recording, UnitFilter())
        self.needed, self.read = needed, needed if read is None else read
        self.tried: list[set[str]] = []
        self.structure = self.find_units()
        self.kept = torch.arange(24) < 10

    def run(self, structure: Structure, kept: Tensor, sizes: Sizes | None = None) -> Divergence | None:
        follow = {a.attribute for a in structure.size_attributes}
        self.tried.append(follow)
        if self.needed == follow & self.read and self.needed:
            return None
        return self.diverging(follow)

    def diverging(self, follow: set[str]) -> Divergence:
        return Divergence(0, "view to a size that is written down", OpCall("view", sorted(follow & self.read), []))

    def search(self) -> Divergence | None:
        return find_size_attribute(self, self.structure, self.kept, self.diverging(set()))


def module(**attributes: Any) -> nn.Module:
    held = nn.Module()
    for name, value in attributes.items():
        setattr(held, name, value)
    return held


@pytest.mark.parametrize("needed", [f"width_{i}" for i in range(12)])
def test_bisection_finds_the_one_attribute_that_is_read(needed: str) -> None:
    trial = Stub(module(**{f"width_{i}": 24 for i in range(12)}), {needed})
    further = trial.search()
    assert further is not None and further.step > len(trial.recording.steps)
    assert list(trial.recording.size_attributes) == [("", needed, ())]
    assert len(trial.tried) <= 8  # of 12, by halves


def test_an_attribute_that_must_stay_as_it_is_is_left_out() -> None:
    model = module(**{f"width_{i}": 24 for i in range(6)})
    trial = Stub(model, {"width_4"}, read={"width_1", "width_4"})
    assert trial.search() is not None
    assert list(trial.recording.size_attributes) == [("", "width_4", ())]


def test_attributes_that_nothing_reads_cost_one_run_and_are_not_searched_again() -> None:
    trial = Stub(module(**{f"width_{i}": 24 for i in range(10)}), set())
    assert trial.search() is None and len(trial.tried) == 1
    assert trial.recording.size_attributes == {}
    assert trial.search() is None and len(trial.tried) == 1


def test_a_few_attributes_are_set_together_if_none_alone_is_enough() -> None:
    trial = Stub(module(width=24, columns=24, other=7), {"width", "columns"})
    assert trial.search() is not None
    assert {key[1] for key in trial.recording.size_attributes} == {"width", "columns"}


def test_entries_of_one_list_are_tried_together_first() -> None:
    trial = Stub(module(width=24, shape=(24, 24)), {"shape"})
    assert trial.search() is not None
    assert list(trial.recording.size_attributes) == [("", "shape", (0,)), ("", "shape", (1,))]


def test_more_candidates_than_are_tried() -> None:
    trial = Stub(module(**{f"width_{i}": 24 for i in range(20)}), {"width_19"})
    assert trial.search() is None
    assert trial.recording.size_attributes == {}


class Blocks(nn.Module):
    """Two modules of one class run the same line; what is found in one is known of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = Block(5, 12), Block(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)))


class Block(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layer, self.width = nn.Linear(inputs, width), width

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(-1, self.width)


def test_an_attribute_is_followed_wherever_the_same_line_runs() -> None:
    sparse = zg.sparsify(Blocks(), torch.randn(4, 5))
    keys = {(a.module, a.attribute, a.entry) for a in sparse.structure.size_attributes}
    assert keys == {("one", "width", ()), ("two", "width", ())}
    close_randomly(sparse, torch.Generator().manual_seed(0))
    small = sparse.compact()
    assert small.one.width == small.one.layer.out_features and small.two.width == small.two.layer.out_features
