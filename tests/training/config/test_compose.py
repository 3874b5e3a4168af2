"""Every file in configs/ composes, and makes what it names."""

import itertools

import pytest
import torch
from omegaconf import OmegaConf

import zerogate as zg
from config_options import images, options
from zerogate import data
from zerogate.errors import ConfigError
from zerogate.training import build
from zerogate.training.build_gates import make_gate
from zerogate.training.config.compose import amend, compose
from zerogate.training.instantiate import instantiate

ALIASES = {
    "gate": {"louizos": "hard_concrete_paper"},
    "ticket": {"cs": "continuous_sparsification", "imp": "iterative_magnitude"},
}
KINDS = {"continuous_sparsification": "cs", "iterative_magnitude": "imp"}


def composed(experiment):
    return compose([f"experiment={experiment}"], "tickets" if "tickets" in experiment else "train")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_makes_its_model_gate_and_schedule(experiment):
    config = composed(experiment)
    assert config.name == experiment
    model = build.make_model(config, images(config.data.name))
    build.check_model(model, torch.zeros(2, *images(config.data.name).shape), 10)
    assert experiment.endswith("_dense") == (config.gate._target_ is None)
    if config.gate._target_ is not None:
        assert isinstance(instantiate("gate", config.gate), (zg.HardConcrete, zg.SoftMask))
        assert instantiate("objective", config.objective).weight == config.objective.weight > 0
        assert (
            config.gate_lr is None or config.gate_lr >= config.optimizer.lr
        )  # gates that share the weights' rate hardly move
    optimizer = instantiate("optimizer", config.optimizer)([{"params": model.parameters()}])
    if config.scheduler._target_ is not None:
        build.make_scheduler(config, "scheduler", 1000)(optimizer)
        assert max(config.scheduler.get("milestones", [0])) < config.trainer.max_epochs


def test_experiments_carry_the_two_repositories_recipes():
    l0, cs = (compose([f"experiment={name}"]) for name in ("googlenet_l0", "resnet20_cs"))
    assert (l0.data.batch_size, l0.optimizer.lr, l0.optimizer.weight_decay) == (128, 1e-3, 1e-4)
    assert (l0.scheduler.milestones, l0.scheduler.gamma, l0.trainer.max_epochs) == ([100, 150], 0.1, 180)
    assert OmegaConf.to_container(l0.data.augment) == {
        "flip": True,
        "crop": 0,
        "resized_crop": [[0.8, 1.0], [0.9, 1.1]],
    }
    assert (l0.objective.weight, l0.objective.over, l0.objective.reduce) == (0.5, "gates", "mean")
    assert l0.gate.droprate_init == 0.5 and l0.gate_lr == 0.02
    assert (cs.data.batch_size, cs.optimizer.lr, cs.optimizer.momentum) == (128, 0.1, 0.9)
    assert cs.optimizer.nesterov and cs.optimizer.weight_decay == 1e-4
    assert (cs.scheduler.milestones, cs.scheduler.gamma, cs.trainer.max_epochs) == ([56, 71], 0.1, 85)
    assert (cs.objective.weight, cs.objective.reduce, cs.sparsify.unit) == (1e-8, "sum", "weight")
    assert (cs.gate.initial_value, cs.gate.final_temperature, cs.gate_lr) == (0.0, 200.0, 0.1)
    assert (cs.data.validation, cs.data.stratified, cs.data.augment.crop) == (5000, True, 4)


def test_ticket_experiments_carry_their_protocols():
    cpu, gpu = composed("resnet20_tickets"), composed("resnet20_tickets_gpu")
    assert [dict(c.search) | {"only": None} for c in (cpu, gpu)] == [
        {"kind": "cs", "density": None, "rounds": rounds, "length": length, "final_length": last, "rewind": rewind,
         "rewind_optimizer": False, "reset": "paper", "only": None}
        for rounds, length, last, rewind in ((2, 4, 8, "1ep"), (3, 85, 85, "2ep"))
    ]  # fmt: skip
    for config in (cpu, gpu):
        assert (config.optimizer.lr, config.optimizer.nesterov, config.optimizer.weight_decay) == (0.1, True, 1e-4)
        assert (config.gate_lr, config.data.batch_size, config.sparsify.unit) == (0.1, 128, "weight")
        assert (config.objective.weight, config.objective.reduce, config.gate.final_temperature) == (1e-8, "sum", 200)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert sorted(build.make_scheduler(gpu, "scheduler", 85 * 352)(optimizer).milestones) == [56 * 352, 71 * 352]


@pytest.mark.parametrize("ticket", options("ticket"))
def test_every_kind_of_ticket_composes_over_every_experiment(ticket):
    kind = KINDS.get(ticket, ticket)
    gates = {"cs": zg.SoftMask, "l0": zg.HardConcrete, "random": zg.Random, "small_dense": None, "dense": None}
    for experiment in ("resnet20_cs", "resnet20_tickets", "googlenet_l0"):
        config = compose([f"experiment={experiment}", f"ticket={ticket}", "search.density=0.2"], "tickets")
        assert (config.search.kind, config.sparsify.unit) == (kind, "weight")
        gate = gates.get(kind, zg.Magnitude)
        if gate is None:
            assert config.gate._target_ is None
        else:
            assert type(make_gate(config)) is gate
            assert (config.search.rounds == 0) == (kind in ("gradual", "oneshot", "random"))


def test_values_for_one_kind_alone():
    only = ["+search.only.imp.gate.scope=layer", "+search.only.imp.search.rounds=3", "search.rewind=0it"]
    only.append("+search.only.cs={objective: target, optimizer: {lr: 0.5}, scheduler: {milestones: [3, 4]}}")
    only.append("scheduler=multistep")
    imp, cs = (compose([*only, f"ticket={kind}"], "tickets") for kind in ("imp", "cs"))
    assert (imp.gate.scope, imp.search.rounds, imp.search.rewind, cs.search.rounds) == ("layer", 3, "0it", 2)
    assert cs.objective._target_ == "zerogate.Target"
    assert (cs.optimizer.lr, cs.scheduler.milestones, imp.scheduler.milestones) == (0.5, [3, 4], [100, 150])
    assert compose([*only, "ticket=imp", "gate.scope=global"], "tickets").gate.scope == "global"


@pytest.mark.parametrize(
    ("group", "alias", "name"), [(group, *pair) for group, aliases in ALIASES.items() for pair in aliases.items()]
)
def test_a_former_name_of_an_option_gives_the_same_values(group: str, alias: str, name: str) -> None:
    command = "tickets" if group == "ticket" else "train"
    for experiment in ([], ["experiment=digits_tickets" if group == "ticket" else "experiment=resnet20_cs"]):
        one, two = (compose([*experiment, f"{group}={option}"], command) for option in (alias, name))
        assert one.overrides == [*experiment, f"{group}={alias}"]
        one.overrides = two.overrides
        assert OmegaConf.to_yaml(one) == OmegaConf.to_yaml(two)


GROUPS = ("model", "data", "gate", "objective", "optimizer", "scheduler", "gate_scheduler", "trainer")


@pytest.mark.parametrize(
    ("group", "option"), list(itertools.chain(*([(g, option) for option in options(g)] for g in GROUPS)))
)
def test_every_option_composes(group, option):
    config = compose([f"{group}={option}"])
    assert OmegaConf.is_dict(config[group])
    if group == "data":
        assert config.data.name == option in data.DATASETS


def test_every_named_data_set_and_model_has_its_option():
    assert options("data") == sorted(data.DATASETS)
    factories = {name for name in zg.models.__all__ if name.islower()}
    assert set(options("model")) == factories


def test_experiment_overrides_groups_and_the_command_line_overrides_both():
    config = compose(["gate=none", "experiment=digits", "optimizer.lr=0.5", "model.width=4"])
    assert config.gate._target_ is None
    assert (config.optimizer.lr, config.model.width, config.objective.weight) == (0.5, 4, 0.5)
    assert config.overrides == ["gate=none", "experiment=digits", "optimizer.lr=0.5", "model.width=4"]


def test_amend_takes_values_only():
    config = compose(["data=mnist"])
    assert amend(config, ["data.path=/elsewhere"]).data.path == "/elsewhere"
    assert config.data.path is None
    for wrong in ("data.pth=x", "+data.new=1", "data=cifar10", "~seed", "a b"):
        with pytest.raises(ConfigError):
            amend(config, [wrong])
