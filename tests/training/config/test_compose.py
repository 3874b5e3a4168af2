"""Every file in configs/ composes, and makes what it names."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import zerogate as zg
from zerogate import data
from zerogate.errors import ConfigError
from zerogate.training import build as building
from zerogate.training.config import compose as settings

CONFIGS = Path(settings.__file__).parents[1] / "configs"
SHAPES = {"digits": (1, 8, 10), "mnist": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}


def options(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def images(name):
    channels, size, classes = SHAPES[name]
    split = data.Split(torch.zeros(4, channels, size, size, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    return data.ImageData(name, split, split, split, classes, (0.5,) * channels, (0.25,) * channels)


def composed(experiment):
    return settings.compose([f"experiment={experiment}"], "tickets" if "tickets" in experiment else "train")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_makes_its_model_gate_and_schedule(experiment):
    config = composed(experiment)
    assert config.name == experiment
    model = building.make_model(config, images(config.data.name))
    building.check_model(model, torch.zeros(2, *images(config.data.name).shape), 10)
    assert experiment.endswith("_dense") == (config.gate._target_ is None)
    if config.gate._target_ is not None:
        assert isinstance(building.instantiate("gate", config.gate), (zg.HardConcrete, zg.SoftMask))
        assert building.instantiate("objective", config.objective).weight == config.objective.weight > 0
        assert (
            config.gate_lr is None or config.gate_lr >= config.optimizer.lr
        )  # gates that share the weights' rate hardly move
    optimizer = building.instantiate("optimizer", config.optimizer)([{"params": model.parameters()}])
    if config.scheduler._target_ is not None:
        building.make_scheduler(config, "scheduler", 1000)(optimizer)
        assert max(config.scheduler.get("milestones", [0])) < config.trainer.max_epochs


def test_experiments_carry_the_two_repositories_recipes():
    l0, cs = (settings.compose([f"experiment={name}"]) for name in ("googlenet_l0", "resnet20_cs"))
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
    assert sorted(building.make_scheduler(gpu, "scheduler", 85 * 352)(optimizer).milestones) == [56 * 352, 71 * 352]


@pytest.mark.parametrize("ticket", options("ticket"))
def test_every_kind_of_ticket_composes_over_every_experiment(ticket):
    gates = {"cs": zg.SoftMask, "l0": zg.HardConcrete, "random": zg.Random, "small_dense": None, "dense": None}
    for experiment in ("resnet20_cs", "resnet20_tickets", "googlenet_l0"):
        config = settings.compose([f"experiment={experiment}", f"ticket={ticket}", "search.density=0.2"], "tickets")
        assert (config.search.kind, config.sparsify.unit) == (ticket, "weight")
        gate = gates.get(ticket, zg.Magnitude)
        if gate is None:
            assert config.gate._target_ is None
        else:
            assert type(building.make_gate(config)) is gate
            assert (config.search.rounds == 0) == (ticket in ("gradual", "oneshot", "random"))


def test_values_for_one_kind_alone():
    only = ["+search.only.imp.gate.scope=layer", "+search.only.imp.search.rounds=3", "search.rewind=0it"]
    only.append("+search.only.cs={objective: target, optimizer: {lr: 0.5}, scheduler: {milestones: [3, 4]}}")
    only.append("scheduler=multistep")
    imp, cs = (settings.compose([*only, f"ticket={kind}"], "tickets") for kind in ("imp", "cs"))
    assert (imp.gate.scope, imp.search.rounds, imp.search.rewind, cs.search.rounds) == ("layer", 3, "0it", 2)
    assert cs.objective._target_ == "zerogate.Target"
    assert (cs.optimizer.lr, cs.scheduler.milestones, imp.scheduler.milestones) == (0.5, [3, 4], [100, 150])
    assert settings.compose([*only, "ticket=imp", "gate.scope=global"], "tickets").gate.scope == "global"


GROUPS = ("model", "data", "gate", "objective", "optimizer", "scheduler", "gate_scheduler", "trainer")


@pytest.mark.parametrize(
    ("group", "option"), list(itertools.chain(*([(g, option) for option in options(g)] for g in GROUPS)))
)
def test_every_option_composes(group, option):
    config = settings.compose([f"{group}={option}"])
    assert OmegaConf.is_dict(config[group])
    if group == "data":
        assert config.data.name == option in data.DATASETS


def test_every_named_data_set_and_model_has_its_option():
    assert options("data") == sorted(data.DATASETS)
    factories = {name for name in zg.models.__all__ if name.islower()}
    assert set(options("model")) == factories


@pytest.mark.parametrize("name", ["lenet5", "lenet300", "resnet20", "convnet"])
def test_models_learn_from_the_data_what_is_left_open(name):
    model = building.make_model(settings.compose([f"model={name}", "data=mnist"]), images("mnist"))
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    given = building.make_model(settings.compose([f"model={name}", "model.num_classes=7"]), images("mnist"))
    assert given(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_experiment_overrides_groups_and_the_command_line_overrides_both():
    config = settings.compose(["gate=none", "experiment=digits", "optimizer.lr=0.5", "model.width=4"])
    assert config.gate._target_ is None
    assert (config.optimizer.lr, config.model.width, config.objective.weight) == (0.5, 4, 0.5)
    assert config.overrides == ["gate=none", "experiment=digits", "optimizer.lr=0.5", "model.width=4"]


@pytest.mark.parametrize("group", ["scheduler", "gate_scheduler"])
def test_schedules_follow_the_length_of_the_run(group):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cosine = settings.compose([f"{group}=cosine", "trainer.max_epochs=7"])
    assert building.make_scheduler(cosine, group, 700)(optimizer).T_max == 7
    drops = settings.compose([f"{group}=drops", "trainer.max_epochs=8"])
    assert sorted(building.make_scheduler(drops, group, 800)(optimizer).milestones) == [528, 672]


@pytest.mark.parametrize(("command", "checks"), [
    ("train", settings._CHECKS), ("tickets", settings._SEARCH_CHECKS), ("compare", settings._COMPARE_CHECKS)
])  # fmt: skip
def test_every_checked_key_exists_and_refuses_nonsense(command, checks):
    config = settings.compose([], command)
    for key in checks:
        assert OmegaConf.select(config, key, default="none") != "none"
        wrong = config.copy()
        OmegaConf.update(wrong, key, {"a": 1}, merge=False, force_add=True)
        with pytest.raises(ConfigError, match=key):
            settings.check(wrong)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "true", "''"])
def test_rates_are_finite_and_not_negative(value):
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        settings.compose([f"optimizer.lr={value}"])


def test_amend_takes_values_only():
    config = settings.compose(["data=mnist"])
    assert settings.amend(config, ["data.path=/elsewhere"]).data.path == "/elsewhere"
    assert config.data.path is None
    for wrong in ("data.pth=x", "+data.new=1", "data=cifar10", "~seed", "a b"):
        with pytest.raises(ConfigError):
            settings.amend(config, [wrong])


def test_seeds_of_steps_differ():
    from zerogate.training.classifier import seed_of

    seeds = [seed_of(run, step) for run in range(20) for step in range(500)]
    # 32 bits is what torch's CPU generator takes from a seed
    collisions = len(seeds) - len({seed & 0xFFFFFFFF for seed in seeds})
    assert collisions <= 2 and len(set(seeds)) == len(seeds)
    bits = sum(bin(seed & 0xFFFFFFFF).count("1") for seed in seeds) / len(seeds)
    assert math.isclose(bits, 16, abs_tol=0.15)


def test_core_needs_neither_lightning_nor_hydra():
    code = (
        "import sys, zerogate, zerogate.bench;"
        "heavy = {'pytorch_lightning', 'hydra', 'omegaconf', 'rich', 'datasets', 'torchmetrics'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
