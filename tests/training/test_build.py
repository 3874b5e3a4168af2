"""From a configuration to its objects."""

import pytest
import torch

from config_options import images
from zerogate.training import build
from zerogate.training.config.compose import compose


@pytest.mark.parametrize("name", ["lenet5", "lenet300", "resnet20", "convnet"])
def test_models_learn_from_the_data_what_is_left_open(name):
    model = build.make_model(compose([f"model={name}", "data=mnist"]), images("mnist"))
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    given = build.make_model(compose([f"model={name}", "model.num_classes=7"]), images("mnist"))
    assert given(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("group", ["scheduler", "gate_scheduler"])
def test_schedules_follow_the_length_of_the_run(group):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cosine = compose([f"{group}=cosine", "trainer.max_epochs=7"])
    assert build.make_scheduler(cosine, group, 700)(optimizer).T_max == 7
    drops = compose([f"{group}=drops", "trainer.max_epochs=8"])
    assert sorted(build.make_scheduler(drops, group, 800)(optimizer).milestones) == [528, 672]


def test_the_optimizer_gives_gates_their_own_rate_and_no_decay():
    config = compose(["experiment=digits", "optimizer.weight_decay=0.1", "gate_lr=0.7"])
    batches = build.load_batches(config, build.load_data(config), torch.device("cpu"))
    module = build.make_classifier(config, batches, torch.device("cpu"))
    weights, gates = module.configure_optimizers()[0][0].param_groups
    assert (weights["name"], weights["lr"], weights["weight_decay"]) == ("weights", 0.003, 0.1)
    assert (gates["name"], gates["lr"], gates["weight_decay"]) == ("gates", 0.7, 0.0)
    assert gates["params"][0] is module.sparse.logits
    assert module.model.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert {key.split(".")[0] for key in module.state_dict()} == {"model", "sparse", "train_scores", "val_scores"}


def test_the_facts_of_the_data_are_told_by_their_shape() -> None:
    assert build.model_facts((3, 32, 32), 10) == {
        "num_classes": 10, "in_channels": 3, "in_features": 3072, "image_size": 32
    }  # fmt: skip
    assert build.model_facts((1, 8, 6), 5) == {"num_classes": 5, "in_channels": 1, "in_features": 48}


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["data.batch_size=64"], 20),  # 4 batches of 200 images, 5 epochs
        (["data.batch_size=64", "data.drop_last=true"], 15),
        (["data.batch_size=64", "trainer.accumulate_grad_batches=3"], 10),
        (["data.batch_size=64", "trainer.max_steps=7"], 7),
        (["data.batch_size=64", "trainer.max_steps=70"], 20),
    ],
)
def test_the_steps_of_a_run_are_counted_before_it_begins(overrides: list[str], steps: int) -> None:
    config = compose(["experiment=digits", "data.limit=200", "trainer.max_epochs=5", *overrides])
    batches = build.load_batches(config, build.load_data(config), torch.device("cpu"))
    assert build.total_steps(config, batches) == steps
