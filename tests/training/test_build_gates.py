"""From a configuration to gates and what is added to the loss for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.errors import ConfigError
from zerogate.training.build_gates import make_gate, make_objective, make_sparse, state_steps
from zerogate.training.config.compose import compose

X = torch.randn(2, 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def test_keys_for_the_gate_of_an_experiment_are_dropped_with_it() -> None:
    config = compose(["experiment=digits", "gate._target_=zerogate.SoftMask"])  # whose droprate_init is another gate's
    assert "droprate_init" in config.gate
    assert isinstance(make_gate(config), zg.SoftMask)
    with pytest.raises(ConfigError, match="droprate_init"):  # said on the command line it is meant, and refused
        make_gate(compose(["experiment=digits", "gate._target_=zerogate.SoftMask", "gate.droprate_init=0.3"]))


def test_the_density_of_a_search_goes_to_the_gate_or_becomes_a_target() -> None:
    search = ["experiment=digits_tickets", "search.density=0.25"]
    magnitude = compose([*search, "ticket=iterative_magnitude"], "tickets")
    gate = make_gate(magnitude)
    assert isinstance(gate, zg.Magnitude) and gate.density == 0.25
    assert isinstance(make_objective(magnitude), zg.Penalty)
    soft = compose([*search, "ticket=continuous_sparsification"], "tickets")
    objective = make_objective(soft)
    assert isinstance(make_gate(soft), zg.SoftMask)
    assert isinstance(objective, zg.Target) and (objective.over, objective.share) == ("gates", 0.25)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ticket=imp", "gate.density=0.5"], r"search.density=0.25 and gate.density=0.5 are two; give one of them"),
        (["objective.weight=3"], r"is an objective already; leave out objective.weight=3, or search.density"),
    ],
)
def test_two_answers_to_one_question_are_refused(overrides: list[str], message: str) -> None:
    config = compose(["experiment=digits_tickets", "search.density=0.25", *overrides], "tickets")
    with pytest.raises(ConfigError, match=message):
        make_gate(config)
        make_objective(config)


def test_the_keys_of_a_penalty_are_not_those_of_a_target() -> None:
    target = ["experiment=digits", "objective=target", "objective.macs=0.5"]  # the experiment sets objective.weight
    objective = make_objective(compose(target))
    assert isinstance(objective, zg.Target) and (objective.over, objective.share) == ("macs", 0.5)
    with pytest.raises(ConfigError, match=r"objective=target has no weight; give objective\.params or objective\.macs"):
        make_objective(compose([*target, "objective.weight=1.0"]))


def test_without_a_gate_there_is_no_handle() -> None:
    assert make_sparse(compose(["gate=none"]), network(), X) is None
    sparse = make_sparse(compose(["gate=hard_concrete", "sparsify.unit=weight"]), network(), X)
    assert sparse is not None and len(sparse.logits) == 90


def test_who_asks_for_the_length_of_the_run_is_told_once() -> None:
    for given, steps in ((None, 100), (7, 7)):
        sparse = zg.sparsify(network(), X, gate=zg.SoftMask(steps=given), objective=zg.Target(macs=0.5, steps=given))
        state_steps(sparse, 100)
        assert (sparse.gate.steps, sparse.objective.steps) == (steps, steps)
    state_steps(zg.sparsify(network(), X, gate=zg.HardConcrete(), objective=zg.Penalty(1.0)), 100)  # neither asks
