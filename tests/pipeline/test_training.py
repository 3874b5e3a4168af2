"""Training by configuration: what a run leaves behind, and that a stopped and resumed run is the uninterrupted one."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import zerogate as zg
from run_folders import differences
from zerogate.cli.main import main
from zerogate.training import build
from zerogate.training.callbacks.files import COLUMNS
from zerogate.training.checkpoints import load_checkpoint
from zerogate.training.classifier import Classifier
from zerogate.training.config.compose import compose
from zerogate.training.evaluate import evaluate_run
from zerogate.training.train import train

# Four steps an epoch, three epochs; every source of randomness in use.
SMALL = [
    "model.width=4",
    "data.limit=200",
    "data.augment.crop=1",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
]
STEPS, EPOCHS = 4, 3
RECIPES = {
    "hard_concrete": ["experiment=digits", *SMALL, "scheduler=cosine"],
    "soft_mask": ["experiment=digits_cs", *SMALL, "scheduler.milestones=[1,2]"],
    "apart": ["experiment=digits_cs", *SMALL, "scheduler.milestones=[1,2]", "gate_scheduler=drops"],
    "dense": ["experiment=digits_dense", *SMALL, "trainer.accumulate_grad_batches=3"],
    "per_example": ["experiment=digits", *SMALL, "sparsify.per_example=true", "trainer.max_steps=10"],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, one per recipe, each made when first asked for."""
    made: dict[str, Path] = {}

    def run(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp(recipe) / "run"
            assert main(["train", *RECIPES[recipe], f"output={made[recipe]}"]) == 0
        return made[recipe]

    return run


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_comparison_can_fail(whole, tmp_path):
    assert differences(whole("dense"), whole("dense")) == []
    assert main(["train", *RECIPES["dense"], "seed=1", f"output={tmp_path}/run"]) == 0
    found = differences(whole("dense"), tmp_path / "run")
    assert {"metrics.csv", "seed", "last.ckpt/state_dict/model.stem.conv.weight"} <= set(found)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("recipe", "stops"),
    [
        ("hard_concrete", [1]),  # the very first step
        ("hard_concrete", [2, 4, 7, 11]),  # mid-epoch, last of an epoch, again and again
        ("hard_concrete", [12]),  # the last step of all
        ("soft_mask", [3, 8]),
        ("soft_mask", [5, 6]),
        ("apart", [2, 9]),
        ("dense", [1, 7, 8]),  # inside an accumulation of gradients
        ("per_example", [2, 6, 8]),
    ],
)
def test_stopped_and_resumed_is_uninterrupted(capsys, monkeypatch, tmp_path, whole, recipe, stops, signum):
    step = Classifier.training_step
    left = list(stops)

    def interrupted(self, batch, batch_idx):
        if left and self.trainer.current_epoch * STEPS + batch_idx + 1 >= left[0]:
            left.pop(0)
            os.kill(os.getpid(), signum)
        return step(self, batch, batch_idx)

    run = tmp_path / "run"
    reference = whole(recipe)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(Classifier, "training_step", interrupted)
    arguments = [*RECIPES[recipe], f"output={run}"]
    for number in range(len(stops)):
        assert main(["train", *arguments]) == 128 + signum
        assert f"zerogate train resume={run}" in capsys.readouterr().out
        assert not (run / "result.json").exists()
        arguments = [f"resume={run}"] if number % 2 else [*RECIPES[recipe], f"resume={run}/last.ckpt"]
    assert main(["train", *arguments]) == 0
    assert not left
    assert differences(reference, run) == []
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_stopped_anywhere(tmp_path, whole, signum):
    reference, run = whole("hard_concrete"), tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", "import torch; torch.set_num_threads(1); from zerogate.cli.main import main; import sys;"
         "sys.exit(main())", "train", *RECIPES["hard_concrete"], f"output={run}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):  # an epoch is done; some way into the next one
            process.send_signal(signum)
            break
    code = process.wait(timeout=60)
    process.stdout.close()
    assert code == (143 if signum == signal.SIGTERM else -9)
    assert main(["train", f"resume={run}"]) == 0
    assert differences(reference, run) == []


def test_killed_before_any_checkpoint_begins_again(tmp_path, whole):
    reference, run = whole("dense"), tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((reference / "config.yaml").read_bytes())
    assert main(["train", f"resume={run}"]) == 0
    assert differences(reference, run) == []


def test_killed_after_the_last_step_only_finishes(tmp_path, whole):
    reference, run = whole("hard_concrete"), tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "last.ckpt", "best.ckpt"):
        (run / name).write_bytes((reference / name).read_bytes())
    assert main(["train", f"resume={run}"]) == 0
    assert differences(reference, run) == []
    assert not list(run.glob("events.*"))  # nothing was trained


def test_more_epochs_go_on_from_the_end(tmp_path):
    recipe = ["experiment=digits", *SMALL]
    long, short = tmp_path / "long", tmp_path / "short"
    assert main(["train", *recipe, "trainer.max_epochs=2", f"output={long}"]) == 0
    assert main(["train", *recipe, "trainer.max_epochs=1", f"output={short}"]) == 0
    assert main(["train", f"resume={short}", "trainer.max_epochs=2"]) == 0
    assert differences(long, short) == []
    assert OmegaConf.load(short / "config.yaml").trainer.max_epochs == 2
    assert main(["train", f"resume={long}", "trainer.max_epochs=1"]) == 2


def test_a_schedule_that_follows_the_run_is_not_lengthened(capsys, whole):
    assert main(["train", f"resume={whole('hard_concrete')}", "trainer.max_epochs=4"]) == 2
    assert "learning rates follow the 3 epochs" in capsys.readouterr().err
    assert OmegaConf.load(whole("hard_concrete") / "config.yaml").trainer.max_epochs == 3


def test_the_files_of_a_gated_run(whole):
    run = whole("soft_mask")
    rows = table(run)
    assert tuple(rows[0]) == COLUMNS
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(e, e * STEPS) for e in (1, 2, 3)]
    temperatures = [float(row["temperature"]) for row in rows]
    assert temperatures == pytest.approx([200 ** (step / 12) for step in (4, 8, 12)], rel=1e-6)
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.005, 0.0005])
    assert [float(row["gate_lr"]) for row in rows] == pytest.approx([10, 1, 0.1])
    for row in rows:
        parts = float(row["train_cross_entropy"]) + float(row["train_l0"])
        assert float(row["train_loss"]) == pytest.approx(parts)
    result = json.loads((run / "result.json").read_text())
    assert result["val_accuracy"] == float(rows[-1]["val_accuracy"])
    assert result["best"]["val_accuracy"] == max(float(row["val_accuracy"]) for row in rows)
    assert result["density_params"] == float(rows[-1]["density_params"]) == result["params"] / result["dense_params"]
    assert result["sparsity_macs"] == 1 - result["density_macs"]
    assert result["compaction_error"] <= 1e-10
    assert result["file_bytes"] == (run / "compact.safetensors").stat().st_size
    dense = zg.models.convnet(in_channels=1, width=4).state_dict().values()
    assert result["dense_bytes"] == sum(x.numel() * x.element_size() for x in dense)
    assert (result["seed"], result["lambda"], result["unit"]) == (0, 1e-8, "weight")
    assert sum(group["units"] for group in result["groups"]) <= result["dense_params"]
    assert result["command"].startswith("zerogate train experiment=digits_cs ")
    assert result["versions"]["torch"] == torch.__version__
    config = OmegaConf.load(run / "config.yaml")
    assert config.scheduler.milestones == [1, 2] and config.gate._target_ == "zerogate.SoftMask"
    assert sorted(path.name for path in run.iterdir() if not path.name.startswith("events")) == [
        "best.ckpt", "compact.safetensors", "config.yaml", "last.ckpt", "metrics.csv", "result.json",
    ]  # fmt: skip


def test_the_tensorboard_log(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = whole("soft_mask")
    log = EventAccumulator(str(run))
    log.Reload()
    tags = log.Tags()
    assert set(tags["scalars"]) == {
        "train/loss", "train/cross_entropy", "train/l0_term", "learning_rate/weights", "learning_rate/gates",
        "gates/temperature", "accuracy/train", "accuracy/val", "val/loss", "density/params", "density/macs",
        "density/expected_params", "density/expected_macs",
    }  # fmt: skip
    groups = json.loads((run / "result.json").read_text())["groups"]
    assert set(tags["histograms"]) == {f"open_probability/{group['name']}" for group in groups}
    assert [event.step for event in log.Scalars("train/loss")] == list(range(1, STEPS * EPOCHS + 1))
    for event in log.Histograms(tags["histograms"][0]):
        assert event.histogram_value.min >= 0 and event.histogram_value.max <= 1


def test_gates_have_a_schedule_of_their_own(whole):
    rows = table(whole("apart"))
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.05, 0.005, 0.0005])
    assert [float(row["gate_lr"]) for row in rows] == pytest.approx(
        [10, 10, 0.1]
    )  # drops after 66 and 84 % of 12 steps, 8 and 11


def test_a_run_by_python_learns_and_its_network_is_the_file(tmp_path):
    config = compose(["experiment=digits", "model.width=16", f"output={tmp_path}/run", "trainer.progress=none"])
    config.trainer.max_epochs = 12
    config.objective.weight = 0.2
    result = train(config)
    assert result["test_accuracy"] > 0.8
    assert 0.1 < result["density_params"] < 0.95
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    small = zg.load(tmp_path / "run" / "compact.safetensors", lambda: zg.models.convnet(in_channels=1, width=16))
    assert sum(parameter.numel() for parameter in small.parameters()) == result["params"]
    batches = build.load_batches(config, build.load_data(config), torch.device("cpu"))
    images, labels = next(iter(batches.test))
    assert not small.training
    correct = (small(images).argmax(1) == labels).double().mean()
    assert len(batches.test) == 1 and float(correct) == pytest.approx(result["test_accuracy"])


def test_max_steps_ends_inside_an_epoch_with_everything_written(whole):
    run = whole("per_example")
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 10
    rows = table(run)
    assert [int(row["step"]) for row in rows] == [4, 8, 10] and not math.isnan(float(rows[-1]["val_accuracy"]))


def test_init_from_takes_weights_not_gates(tmp_path, whole):
    dense = load_checkpoint(whole("dense") / "last.ckpt")["state_dict"]
    recipe = ["experiment=digits", *SMALL, "gate.droprate_init=0.05", "trainer.progress=none"]
    for source in (whole("dense"), whole("dense") / "last.ckpt", whole("hard_concrete")):
        config = compose([*recipe, f"init_from={source}"])
        batches = build.load_batches(config, build.load_data(config), torch.device("cpu"))
        module = build.make_classifier(config, batches, torch.device("cpu"))
        wanted = load_checkpoint(whole("hard_concrete") / "last.ckpt")["state_dict"] if "hard" in str(source) else dense
        for name, value in module.model.state_dict().items():
            assert torch.equal(value, wanted[f"model.{name}"])
        assert module.sparse is not None
        assert float(module.sparse.logits.detach().mean()) == pytest.approx(math.log(0.95 / 0.05), abs=0.01)
    assert main(["train", *recipe, f"init_from={whole('dense')}", f"output={tmp_path}/run"]) == 0
    assert main(["train", *recipe, f"init_from={whole('dense')}", "model.width=5", f"output={tmp_path}/other"]) == 2
    # A resumed run has its weights from its own checkpoint: where it came from may be gone.
    stored = OmegaConf.load(tmp_path / "run" / "config.yaml")
    stored.init_from = "gone"
    OmegaConf.save(stored, tmp_path / "run" / "config.yaml")
    (tmp_path / "run" / "result.json").unlink()
    assert main(["train", f"resume={tmp_path}/run"]) == 0


def test_evaluation_uses_the_deployed_mask(whole):
    run = whole("hard_concrete")
    first, second = evaluate_run(run), evaluate_run(run)
    assert first == second  # no draws
    result = json.loads((run / "result.json").read_text())
    assert (first["val_accuracy"], first["test_accuracy"]) == (result["val_accuracy"], result["test_accuracy"])
