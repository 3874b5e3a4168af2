"""The state of gates, and the names under which checkpoints hold it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import zerogate as zg


def gated(**options: object) -> zg.Sparsified:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return zg.sparsify(model, torch.randn(2, 4), **options)  # type: ignore[arg-type]


def test_checkpoints_name_gates_as_the_handle_shows_them() -> None:
    sparse = gated(gate=zg.SoftMask(steps=10), objective=zg.Target(params=0.5, steps=10))
    state = sparse.state_dict()
    assert [*state] == [
        "logits", "gate.temperature", "gate._extra_state", "objective.multiplier", "objective._log", "objective._start",
        "objective._extra_state",
    ]  # fmt: skip
    outer = nn.ModuleDict({"sparse": sparse, "logits": nn.Linear(1, 1)})
    assert {f"sparse.{key}" for key in state} <= outer.state_dict().keys() and "logits.weight" in outer.state_dict()
    sparse.logits.data.fill_(3.0)
    other = nn.ModuleDict(
        {"sparse": gated(gate=zg.SoftMask(), objective=zg.Target(params=0.5)), "logits": nn.Linear(1, 1)}
    )
    other.load_state_dict(outer.state_dict())
    assert torch.equal(other["sparse"].logits, sparse.logits)  # type: ignore[union-attr, arg-type]


def test_a_checkpoint_of_settled_gates_settles_them() -> None:
    sparse = gated(objective=zg.Target(params=0.5, steps=6))
    optimizer = torch.optim.SGD(sparse.param_groups(lr=0.1))
    for _ in range(6):
        (sparse.model(torch.randn(5, 4)).square().mean() + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    assert sparse.settled and sparse.gates.frozen
    again = gated(objective=zg.Target(params=0.5, steps=6))
    assert not again.settled
    again.load_state_dict(sparse.state_dict())
    assert again.settled
    x = torch.randn(5, 4)
    again.model.load_state_dict(sparse.model.state_dict())
    assert torch.equal(again.model.train()(x), again.model.eval()(x))  # the deployed mask, also in training


def test_copies_and_pickles_carry_gates_of_their_own() -> None:
    sparse = gated()
    for model, again in (copy.deepcopy((sparse.model, sparse)), pickle.loads(pickle.dumps((sparse.model, sparse)))):
        assert again.model is model and again.gates is not sparse.gates
        with torch.no_grad():
            again.logits.fill_(-9.0)
        x = torch.randn(2, 4)
        assert torch.equal(model.eval()(x), model[2].bias.expand(2, -1)) and not torch.equal(
            sparse.model.eval()(x), model(x)
        )


def test_the_model_is_no_part_of_the_handle() -> None:
    sparse = gated()
    assert [name for name, _ in sparse.named_parameters()] == ["gates.logits"]
    assert sparse.model not in [*sparse.modules()]


def test_names_of_before_still_answer_and_say_so() -> None:
    sparse = gated(gate=zg.Random(1.0))
    with pytest.warns(DeprecationWarning, match="open_only"):
        sparse.open_only(torch.tensor([0, 3]))
    assert sparse.is_open().nonzero().flatten().tolist() == [0, 3]
    for name in ("entries", "zero_closed", "gated_names", "masked_weights", "check_unchanged"):
        with pytest.warns(DeprecationWarning, match=name):
            getattr(sparse, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(sparse, "no_such_name")  # noqa: B009


def test_the_handle_has_few_public_methods() -> None:
    own = {n for n, value in vars(zg.Sparsified).items() if callable(value) and not n.startswith("_")}
    assert len(own) <= 16, sorted(own)
