"""Searches for tickets by the command: their files, and that a stopped and resumed search is the uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zerogate as zg
from command_lines import refusal
from run_folders import differences
from zerogate.cli.main import main
from zerogate.training.checkpoints import load_checkpoint
from zerogate.training.classifier import Classifier

# Four steps an epoch: rounds of 1 and of 1½ epochs, where they are cut inside one.
SMALL = [
    "experiment=digits_tickets", "model.width=4", "data.limit=200", "data.augment.crop=1", "search.length=1ep2it",
    "search.final_length=2", "search.rewind=3it", "trainer.progress=none",
]  # fmt: skip
RECIPES = {
    "cs": ["search.rounds=2", "search.density=0.3", "search.rewind_optimizer=true", "gate_scheduler=cosine"],
    "imp": ["ticket=imp", "search.rounds=2", "search.density=0.3", "sparsify.unit=channel"],
    "gradual": ["ticket=gradual", "search.density=0.2", "trainer.accumulate_grad_batches=2"],
    "small_dense": ["ticket=small_dense", "search.density=0.2"],
}
ROUND, TICKET = 6, 8
BATCHES = {"cs": 2 * ROUND + TICKET, "imp": 2 * ROUND + TICKET, "gradual": TICKET, "small_dense": TICKET}


def command(recipe: str) -> list[str]:
    return ["tickets", *SMALL, *RECIPES[recipe]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Uninterrupted searches, one per recipe, each made when first asked for."""
    made: dict[str, Path] = {}

    def run(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp(recipe) / "out"
            assert main([*command(recipe), f"output={made[recipe]}"]) == 0
        return made[recipe]

    return run


def stages(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/config.yaml"))


def differ(first: Path, second: Path) -> list[str]:
    found = differences(first, second, checkpoints=())
    assert stages(first) == stages(second)
    for stage in stages(first):
        found += [f"{stage}/{key}" for key in differences(first / stage, second / stage, checkpoints=["last.ckpt"])]
    return found


class Watch:
    """Counts training steps, by stage, and sends a signal to the process in some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stops: list[int] | None = None) -> None:
        self.made: dict[str, int] = {}
        step, stops = Classifier.training_step, list(stops or [])

        def watched(module: Any, batch: Any, batch_idx: int) -> Any:
            name = Path(module.trainer.callbacks[0].run.folder).name
            self.made[name] = self.made.get(name, 0) + 1
            if stops and sum(self.made.values()) == stops[0]:
                stops.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return step(module, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", watched)


@pytest.mark.parametrize(
    ("recipe", "stops"),
    [
        ("cs", [1, 6, 8, 12, 13, 19]),  # the very first step, the last of each round, the first of the ticket, …
        ("imp", [2, 5, 7, 14]),  # before and behind the rewind point, within rounds
        ("gradual", [1, 5, 8]),
        ("small_dense", [3]),
    ],
)
def test_stopped_and_resumed_is_uninterrupted(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: Callable[[str], Path],
    recipe: str,
    stops: list[int],
) -> None:
    reference, out = whole(recipe), tmp_path / "out"
    watch = Watch(monkeypatch, stops)
    arguments = [*command(recipe), f"output={out}"]
    for number in range(len(stops)):
        assert main(arguments) == 143
        assert f"zerogate tickets resume={out}\n" in capsys.readouterr().out
        assert not (out / "result.json").exists()
        arguments = ["tickets", f"resume={out}"] if number % 2 else [*command(recipe), f"resume={out}"]
    assert main(arguments) == 0
    assert sum(watch.made.values()) == BATCHES[recipe]  # none was gone through twice
    assert differ(reference, out) == []


@pytest.mark.parametrize(
    ("lost", "trained"),
    [
        (["result.json", "mask.safetensors", "compact.safetensors"], {}),
        (["result.json", "ticket/result.json"], {}),
        (["result.json", "ticket/*"], {"ticket": TICKET}),
        (["result.json", "ticket/last.ckpt", "ticket/metrics.csv", "ticket/result.json"], {"ticket": TICKET}),
        (["result.json", "ticket/*", "round-2/*"], {"round-2": ROUND, "ticket": TICKET}),
    ],
)
def test_finished_stages_are_never_repeated(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    whole: Callable[[str], Path],
    lost: list[str],
    trained: dict[str, int],
) -> None:
    reference, out = whole("cs"), tmp_path / "out"
    shutil.copytree(reference, out)
    for pattern in lost:
        for path in out.glob(pattern):
            path.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("round-1/*")}
    watch = Watch(monkeypatch)
    assert main(["tickets", f"resume={out}"]) == 0
    assert watch.made == trained
    assert {path: path.stat().st_mtime_ns for path in out.glob("round-1/*")} == before
    assert differ(reference, out) == []


def test_a_finished_search_is_left_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
) -> None:
    out = whole("cs")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    watch = Watch(monkeypatch)
    for folder in (out, out / "ticket", out / "round-1" / "last.ckpt"):
        assert main(["tickets", f"resume={folder}"]) == 0
        assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert watch.made == {}


def test_the_files_of_a_search(whole: Callable[[str], Path]) -> None:
    out = whole("cs")
    result = json.loads((out / "result.json").read_text())
    mask = zg.Mask.load(out / "mask.safetensors")
    assert sorted(path.name for path in out.iterdir()) == [
        "compact.safetensors", "config.yaml", "mask.safetensors", "result.json", "round-1", "round-2", "ticket"
    ]  # fmt: skip
    assert (result["kind"], result["density"], result["steps"], result["epochs"]) == ("cs", 0.3, BATCHES["cs"], 6)
    assert result["history"] == pytest.approx([0.3**0.5, 0.3, 0.3], abs=0.005)
    assert result["remaining"] == mask.density == result["history"][-1]
    assert (result["remaining_weights"], result["gated_weights"]) == (mask.remaining, mask.total)
    assert [stage["stage"] for stage in result["stages"]] == ["round-1", "round-2", "ticket"]
    assert [stage["steps"] for stage in result["stages"]] == [ROUND, ROUND, TICKET]
    assert result["stages"][-1]["test_accuracy"] == result["test_accuracy"]
    assert result["command"].startswith("zerogate tickets experiment=digits_tickets ")
    network = zg.load(out / "compact.safetensors", lambda: zg.models.convnet(in_channels=1, width=4))
    for name, kept in mask.items():
        weight = network.get_parameter(name)
        assert not weight[~kept].any() and weight[kept].all()
    # What a round's row says is said of the mask that it found, and what it kept is what the next one began with.
    for stage in ("round-1", "round-2"):
        last = load_checkpoint(out / stage / "last.ckpt")
        row = last["callbacks"]["RunFiles"]["rows"][-1]
        remaining = next(s["remaining"] for s in result["stages"] if s["stage"] == stage)
        unit = (last["state_dict"]["sparse.logits"] > 0).double().mean()
        assert float(unit) == pytest.approx(remaining)
        dense, gated = result["dense_params"], result["gated_weights"]
        assert row["density_params"] == pytest.approx((dense - gated + remaining * gated) / dense)


def test_channels_end_in_compaction(whole: Callable[[str], Path]) -> None:
    out = whole("imp")
    result = json.loads((out / "result.json").read_text())
    network = zg.load(out / "compact.safetensors", lambda: zg.models.convnet(in_channels=1, width=4))
    params = sum(p.numel() for p in network.parameters())
    assert params == result["params"] < result["dense_params"]
    assert result["remaining"] == params / result["dense_params"]
    assert sum(g["kept"] for g in result["groups"]) == pytest.approx(
        0.3 * sum(g["units"] for g in result["groups"]), abs=3
    )


def test_a_small_dense_network_has_the_parameters_of_the_ticket(whole: Callable[[str], Path]) -> None:
    small, ticket = (json.loads((whole(name) / "result.json").read_text()) for name in ("small_dense", "gradual"))
    network = zg.load(whole("small_dense") / "compact.safetensors", lambda: zg.models.convnet(in_channels=1, width=4))
    params = sum(p.numel() for p in network.parameters())
    assert params == small["params"] <= ticket["params"] < params + 60  # a channel more would be too many
    assert small["dense_params"] == ticket["dense_params"]
    fixed = ticket["dense_params"] - ticket["gated_weights"]
    assert small["remaining"] == pytest.approx((params - fixed) / ticket["gated_weights"])
    assert not (whole("small_dense") / "mask.safetensors").exists()


def test_eval_and_compact_take_a_search_or_a_stage(
    capsys: pytest.CaptureFixture[str], whole: Callable[[str], Path]
) -> None:
    out = whole("cs")
    result = json.loads((out / "result.json").read_text())
    for folder, stage in ((out, -1), (out / "ticket", -1), (out / "round-1", 0)):
        assert main(["eval", str(folder)]) == 0
        shown = capsys.readouterr().out
        assert f"test accuracy {result['stages'][stage]['test_accuracy']:.2%}" in shown
    before = (out / "compact.safetensors").read_bytes()
    assert main(["compact", str(out)]) == 0
    assert (out / "compact.safetensors").read_bytes() == before


def test_the_dense_kind_is_a_run_of_train(tmp_path: Path) -> None:
    quick = ["model.width=4", "data.limit=200", "trainer.max_epochs=2", "trainer.progress=none"]
    assert main(["tickets", *quick, "ticket=dense", f"output={tmp_path}/out"]) == 0
    assert main(["train", *quick, "gate=none", f"output={tmp_path}/run"]) == 0
    one, two = (load_checkpoint(tmp_path / name / "last.ckpt") for name in ("out/ticket", "run"))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert (
            torch.equal(tensor, two["state_dict"][name])
            if torch.is_tensor(tensor)
            else tensor == two["state_dict"][name]
        )


def test_searches_and_runs_are_told_apart(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    out = whole("cs")
    assert "write `zerogate tickets`" in refusal(capsys, ["train", *SMALL[:1], f"output={tmp_path}/new"])
    for folder in (out, out / "ticket"):
        assert f"zerogate tickets resume={out}\n" in refusal(capsys, ["train", f"resume={folder}"])
    assert "already holds a run" in refusal(capsys, [*command("cs"), f"output={out}"])
    assert "search.density=0.5" in refusal(capsys, ["tickets", f"resume={out}", "search.density=0.5"])
    assert "contradict" in refusal(capsys, ["tickets", f"resume={out}", "overwrite=true"])
    run = tmp_path / "run"
    assert main(["train", "model.width=4", "data.limit=64", "trainer.max_epochs=1", f"output={run}"]) == 0
    assert f"zerogate train resume={run}\n" in refusal(capsys, ["tickets", f"resume={run}"])
    # Replaced on demand, and only then: by a search of one stage, whose folder holds nothing of the old one.
    (run / "notes.txt").write_text("mine")
    arguments = ["tickets", *SMALL, *RECIPES["small_dense"], f"output={run}"]
    refusal(capsys, arguments)
    assert main([*arguments, "overwrite=true"]) == 0
    assert not (run / "last.ckpt").exists()
    assert (run / "notes.txt").exists()
    assert (
        main(["train", "model.width=4", "data.limit=64", "trainer.max_epochs=1", f"output={run}", "overwrite=true"])
        == 0
    )
    assert not (run / "ticket").exists()


def test_a_damaged_stage_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, whole: Callable[[str], Path]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole("cs"), out)
    for path in (out / "result.json", out / "ticket" / "result.json"):
        path.unlink()
    checkpoint = out / "ticket" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "ticket/last.ckpt" in refusal(capsys, ["tickets", f"resume={out}"])
    shutil.copyfile(whole("small_dense") / "ticket" / "last.ckpt", checkpoint)
    assert "not the state of a ticket search" in refusal(capsys, ["tickets", f"resume={out}"])
