"""`zerogate train`: a mistake is one line, with nothing written; a run is resumed, replaced, or left alone."""

import json
import os
import resource
from pathlib import Path

import pytest
import torch

from command_lines import QUICK, contents, refusal
from image_sets import make_folder
from zerogate.cli.main import main

BAD_OVERRIDES = [
    (["model=nope"], "unknown model 'nope'; choose one of convnet"),
    (["data=nope"], "unknown data 'nope'; choose one of cifar10"),
    (["experiment=nope"], "unknown experiment 'nope'"),
    (["nope=1"], "no such key 'nope'"),
    (["model.widht=3"], "no such key 'model.widht'"),
    (["seed"], "write key=value"),
    (["a b"], "write key=value"),
    (["--epochs", "3"], "unknown option '--epochs'"),
    (["seed=-1"], "seed=-1"),
    (["seed=${oc.env:ZEROGATE_NO_SUCH}"], "ZEROGATE_NO_SUCH"),
    (["gate=null"], "gate=null"),
    (["gate._target_=zerogate.Nope"], "zerogate.Nope"),
    (["gate=soft_mask", "+gate.droprate_init=0.5"], "droprate_init"),
    (["model._target_=nowhere.Net"], "No module named 'nowhere'"),
    (["model._target_=zerogate.models.nope"], "zerogate.models.nope"),
    (["model._target_=builtins.dict"], "makes a dict"),
    (["+model.depth=3"], "unexpected keyword argument 'depth'"),
    (["model.width=0"], "width must be a whole number of at least 1, got 0"),
    (["model.num_classes=3"], "set model.num_classes=10"),
    (["model=lenet5"], "no such key 'model.width'"),
    (["objective.weight=-1"], "-1"),
    (["objective.weight=nan"], "nan"),
    (["objective.weight=much"], "objective"),
    (["objective.over=units"], "units"),
    (["gate.droprate_init=0"], "droprate_init"),
    (["gate.droprate_init=1.5"], "1.5"),
    (["experiment=digits_cs", "gate.final_temperature=0"], "temperature"),
    (["sparsify.unit=neuron"], "channel or weight"),
    (["sparsify.unit=weight", "sparsify.gate_inputs=true"], "gate_inputs"),
    (["optimizer.lr=-1"], "optimizer.lr=-1"),
    (["optimizer._target_=torch.optim.Nope"], "torch.optim.Nope"),
    (["+optimizer.nope=1"], "leave it out with ~optimizer.nope"),
    (["experiment=digits_cs", "scheduler=cosine"], "leave it out with ~scheduler.milestones"),
    (["experiment=digits_cs", "scheduler=drops"], "leave it out with ~scheduler.milestones"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
    (["trainer.accelerator=abacus"], "abacus"),
    (["trainer.precision=7"], "7"),
    (["+trainer.nope=1"], "nope"),
    (["data.batch_size=0"], "data.batch_size=0"),
    (["data.validation=5000"], "validation=5000"),
    (["data.augment.crop=-1"], "crop"),
    (["data.augment.resized_crop=[1]"], "resized_crop"),
    (["+data.augment.nope=1"], "nope"),
    (["+data.nope=1"], "nope"),
    (["data.num_classes=3"], "labels outside 0..2"),
    (["data=folder"], "needs a path"),
    (["data=folder", "data.path=no/such/folder"], "no/such/folder"),
    (["resume=no/such/run"], "no/such/run"),
    (["init_from=no/such/run"], "no/such/run"),
]


@pytest.mark.parametrize(("overrides", "expected"), BAD_OVERRIDES, ids=lambda value: str(value)[:40])
def test_bad_overrides(capsys, tmp_path, monkeypatch, overrides, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(capsys, ["train", *QUICK, "output=run", *overrides])
    assert contents(tmp_path) == {}


def test_a_model_that_does_not_fit_the_images(capsys, tmp_path):
    small = ["train", "model=lenet5", "data=digits", f"output={tmp_path}/run"]
    assert "16×16" in refusal(capsys, small)
    assert "rejects images of shape [1, 8, 8]" in refusal(capsys, [*small, "model.image_size=28"])
    assert contents(tmp_path) == {}


def test_a_model_of_the_users_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine_own.py").write_text(
        "import torch\nclass Net(torch.nn.Sequential):\n    def __init__(self, num_classes):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(),\n"
        "                         torch.nn.Linear(16, num_classes))\n"
        "class Lone(torch.nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    own = [*QUICK, "model.width=null", "model._target_=mine_own.Net"]
    assert main(["train", *own, "output=run"]) == 0
    assert json.loads(Path("run/result.json").read_text())["dense_params"] == 64 * 16 + 16 + 16 * 10 + 10
    lone = ["train", *own, "model._target_=mine_own.Lone", "output=other"]
    assert "no unit that could be removed" in refusal(capsys, lone)  # one layer from input to output: no prunable unit
    assert not Path("other").exists()
    Path("broken.py").write_text("import no_such_module\n")
    assert "no_such_module" in refusal(capsys, ["train", *own, "model._target_=broken.Net", "output=other"])


def test_an_occupied_folder_is_left_alone_unless_told(capsys, tmp_path, gated):
    before = contents(gated)
    assert "overwrite=true" in refusal(capsys, ["train", *QUICK, f"output={gated}"])
    assert contents(gated) == before
    # An error found before the run begins leaves the old run whole even with overwrite=true.
    refusal(capsys, ["train", *QUICK, f"output={gated}", "overwrite=true", "model.num_classes=3"])
    assert contents(gated) == before
    other = tmp_path / "run"
    assert main(["train", *QUICK, f"output={other}"]) == 0
    (other / "notes.txt").write_text("mine")
    assert main(["train", *QUICK, f"output={other}", "overwrite=true", "gate=none", "data.limit=64"]) == 0
    assert (other / "notes.txt").read_text() == "mine"
    assert not (other / "compact.safetensors").exists()  # of the run that was replaced
    assert len(list(other.glob("events.*"))) == 1
    refusal(capsys, ["train", f"resume={other}", "overwrite=true"])


def test_an_output_that_cannot_be_a_folder(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in refusal(capsys, ["train", *QUICK, f"output={file}"])
    assert str(file) in refusal(capsys, ["train", *QUICK, f"output={file}/run"])
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(capsys, tmp_path):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in refusal(capsys, ["train", *QUICK, f"output={tmp_path}/run"])


def test_a_full_disk(capsys, tmp_path, monkeypatch):
    # What the system says of a file that may not grow is what it says of a disk that is full, by another number.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main(["train", *QUICK, f"output={tmp_path}/run"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "best.ckpt" in capsys.readouterr().err
    left = contents(tmp_path / "run")
    assert "config.yaml" in left and not any(name.endswith((".ckpt", ".tmp")) for name in left)


def test_resume_refuses_what_would_change_the_run(capsys, gated):
    before = contents(gated)
    for override, key in (
        ("optimizer.lr=0.5", "optimizer.lr=0.5"),
        ("gate=soft_mask", "gate._target_"),
        ("experiment=digits_cs", "gate._target_"),
        ("data.limit=64", "data.limit=64"),
        ("seed=1", "seed=1"),
    ):
        assert key in refusal(capsys, ["train", f"resume={gated}", override])
    assert contents(gated) == before
    assert main(["train", f"resume={gated}", *QUICK, f"output={gated}", "trainer.progress=none"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(gated) == before


def test_resume_takes_keys_that_only_the_run_has(capsys, tmp_path):
    """Where its data lie now, and its own command line once more."""
    make_folder(tmp_path / "here")
    command = ["data=folder", f"data.path={tmp_path}/here", "model=convnet", "model.width=4", "trainer.max_epochs=1",
               "+optimizer.amsgrad=false", "scheduler=none", f"output={tmp_path}/run", "trainer.progress=none"]  # fmt: skip
    assert main(["train", *command]) == 0
    before = contents(tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "run/result.json").unlink()
    assert main(["train", f"resume={tmp_path}/run", f"data.path={tmp_path}/there"]) == 0
    assert (tmp_path / "run/result.json").is_file()
    capsys.readouterr()
    (tmp_path / "there").rename(tmp_path / "here")
    assert main(["train", *command, f"resume={tmp_path}/run/last.ckpt"]) == 0
    assert "is finished" in capsys.readouterr().out
    changed = {name for name, content in contents(tmp_path / "run").items() if before.get(name) != content}
    assert not changed - {"config.yaml", "result.json"}


def test_a_diverging_loss_names_its_step_and_keeps_the_checkpoint(capsys, tmp_path, monkeypatch):
    from zerogate.training.classifier import Classifier

    step = Classifier.training_step

    def poisoned(self, batch, batch_idx):
        if self.global_step == 4:  # the third step of the second epoch
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return step(self, batch, batch_idx)

    run = tmp_path / "run"
    monkeypatch.setattr(Classifier, "training_step", poisoned)
    assert main(["train", *QUICK, "trainer.max_epochs=3", f"output={run}"]) == 2
    error = capsys.readouterr().err
    assert "nan at step 5 (epoch 3)" in error and "last.ckpt" in error and error.count("\n") == 1
    monkeypatch.undo()
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if torch.is_tensor(value))
    assert main(["eval", str(run)]) == 0
    assert main(["train", *QUICK, "optimizer.lr=1e30", f"output={tmp_path}/other"]) == 2
    assert "step 2 (epoch 1)" in (error := capsys.readouterr().err) and "no checkpoint" in error
