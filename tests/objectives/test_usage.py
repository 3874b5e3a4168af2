"""What is said of a training loop that forgets something, and that nothing is said of one that does not."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg

X, Y = torch.randn(16, 6), torch.randint(3, (16,))


def gated(**options: Any) -> zg.Sparsified:
    torch.manual_seed(0)
    return zg.sparsify(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), X, **options)


def said(
    sparse: zg.Sparsified,
    *,
    gates: bool = True,
    loss: bool = True,
    step: bool = True,
    steps: int = 8,
    accumulate: int = 1,
    expected: bool = False,
) -> list[str]:
    """The beginnings of all warnings of a training."""
    params: Any = sparse.param_groups(1e-2) if gates else sparse.model.parameters()
    optimizer = torch.optim.Adam(params, 1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            for _ in range(accumulate):
                value: Tensor = F.cross_entropy(sparse.model(X), Y)
                value = value + sparse.loss() if loss else value
                value = value + sparse.cost(hard=False).params * 1e-4 if expected else value
                value.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step:
                sparse.step()
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message).partition(" has")[0].partition(" have")[0] for w in caught]


LEARNING = [
    {},
    {"gate": zg.SoftMask(steps=8)},
    {"objective": zg.Target(params=0.5, steps=8)},
    {"gate": zg.SoftMask(steps=8), "objective": zg.Target(macs=0.5, steps=8)},
    {"unit": "weight"},
    {"per_example": True},
]


@pytest.mark.parametrize("options", LEARNING)
def test_each_thing_that_is_forgotten_is_said_once(options: dict[str, Any]) -> None:
    moves_on = "objective" in options or "gate" in options
    assert said(gated(**copy.deepcopy(options)), gates=False) == ["the gates"]
    assert said(gated(**copy.deepcopy(options)), loss=False) == ["sparse.loss()"]
    assert said(gated(**copy.deepcopy(options)), step=False) == (["sparse.step()"] if moves_on else [])
    assert said(gated(**copy.deepcopy(options)), gates=False, loss=False) == ["sparse.loss()", "the gates"]


@pytest.mark.parametrize("options", [*LEARNING, {"gate": zg.Magnitude(density=0.5, steps=8)}, {"gate": zg.Random(0.5)}])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_nothing_is_said_of_a_loop_that_is_whole(options: dict[str, Any], accumulate: int) -> None:
    assert said(gated(**copy.deepcopy(options)), accumulate=accumulate) == []


def test_a_pruner_that_is_never_stepped() -> None:
    assert said(gated(gate=zg.Magnitude(density=0.5, steps=8)), step=False) == ["sparse.step()"]


def test_an_expected_cost_stands_for_the_term() -> None:
    assert said(gated(), loss=False, expected=True) == []
    assert said(gated(objective=zg.Penalty(0.0)), loss=False) == []


def test_nothing_is_said_where_nothing_is_trained() -> None:
    sparse = gated(objective=zg.Target(params=0.5, steps=8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(8):
            sparse.model.eval()(X)
            sparse.loss()
            sparse.step()  # by a loop whose optimizer left steps out


def test_gates_that_are_not_to_learn_are_left_alone() -> None:
    sparse = gated()
    sparse.logits.requires_grad_(False)
    assert said(sparse, gates=False) == []


def test_handles_are_watched_apart_and_copies_go_on() -> None:
    first, second = gated(), gated()
    assert said(first) == [] and said(second, loss=False) == ["sparse.loss()"]
    assert said(copy.deepcopy(first)) == [] and said(pickle.loads(pickle.dumps(second))) == []
