"""Comparisons: every search once, a table of all, and a stopped one that goes on."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_lines import refusal
from run_folders import differences
from zerogate.cli.main import main
from zerogate.report import figures as plots
from zerogate.sweeps import compare as comparing
from zerogate.training.config.compose import compose

QUICK = [
    "experiment=digits_tickets", "model.width=4", "data.limit=128", "search.length=1", "search.final_length=1",
    "search.rounds=1", "search.rewind=1it",
]  # fmt: skip
WANTED = ["compare.kinds=[imp,random]", "compare.densities=[0.3]", "compare.seeds=2", "compare.workers=1"]
NAMES = ["imp_0.3_0", "imp_0.3_1", "random_0.3_0", "random_0.3_1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main(["compare", *QUICK, *WANTED, f"output={folder}"]) == 0
    return folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}


def test_the_table_is_that_of_its_searches(whole: Path) -> None:
    found = results(whole)
    assert [*found] == NAMES
    with (whole / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["density"], row["n"], row["epochs"]) for row in rows] == [
        ("imp", "0.3", "2", "2"), ("random", "0.3", "2", "2")  # a round and the ticket; one stage of both their lengths
    ]  # fmt: skip
    for row in rows:
        values = [found[f"{row['kind']}_0.3_{seed}"]["test_accuracy"] for seed in (0, 1)]
        assert float(row["test_accuracy"]) == statistics.mean(values)
        assert float(row["test_accuracy_std"]) == statistics.stdev(values)
        assert float(row["remaining"]) == pytest.approx(0.3, abs=0.01)
    assert found["imp_0.3_0"]["seed"] == 0 and found["imp_0.3_1"]["seed"] == 1
    summary = json.loads((whole / "compare.json").read_text())
    assert [*summary["searches"]] == sorted(NAMES, key=lambda name: name[-1])
    assert summary["command"].startswith("zerogate compare experiment=digits_tickets ")
    lines = (whole / "table.md").read_text().splitlines()
    assert len(lines) == 4 and " ± " in lines[2]
    assert "imp" in "".join(ET.fromstring((whole / "plot.svg").read_text()).itertext())


def test_a_search_of_a_comparison_is_one_by_itself(tmp_path: Path, whole: Path) -> None:
    alone = ["tickets", *QUICK, "ticket=imp", "search.density=0.3", "seed=1", f"output={tmp_path}/out"]
    assert main(alone) == 0
    assert differences(whole / "imp_0.3_1", tmp_path / "out", checkpoints=["ticket/last.ckpt"]) == []


def test_what_is_finished_is_not_repeated(capsys: pytest.CaptureFixture[str], tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "imp_0.3_1")  # lost; and one that was killed in its last stage
    for path in [out / "random_0.3_0" / "result.json", *(out / "random_0.3_0" / "ticket").iterdir()]:
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*_0.3_*/*") if path.parts[-2] in (NAMES[0], NAMES[3])}
    table = (out / "table.csv").read_bytes()
    capsys.readouterr()
    assert main(["compare", f"resume={out}"]) == 0
    shown = capsys.readouterr().out
    assert "4 searches, 2 of them finished" in shown
    assert shown.count(" left\n") == 2 and "2/2" in shown
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "table.csv").read_bytes() == table
    assert (
        differences(whole / "imp_0.3_1", out / "imp_0.3_1", checkpoints=["round-1/last.ckpt", "ticket/last.ckpt"]) == []
    )
    # More of it may be asked for later; another experiment may not.
    assert (
        main(["compare", f"resume={out}", "compare.seeds=1", "compare.kinds=[dense,random]", "trainer.progress=none"])
        == 0
    )
    assert [row["kind"] for row in json.loads((out / "compare.json").read_text())["rows"]] == ["dense", "random"]
    assert main(["compare", f"resume={out}", "search.length=2"]) == 2
    assert "search.length=2" in capsys.readouterr().err


def test_several_at_once_stop_and_go_on(capsys: pytest.CaptureFixture[str], tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "out"

    def stop() -> None:
        deadline = time.monotonic() + 120
        while not list(out.glob("*/result.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(["compare", *QUICK, *WANTED, "compare.workers=2", f"output={out}"]) == 143
    thread.join()
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"stopped by SIGTERM; continue with: zerogate compare resume={out}"
    assert 1 <= len(results(out)) < 4 and not multiprocessing.active_children()
    assert not list(out.rglob("log.txt"))
    assert main(["compare", f"resume={out}", "compare.workers=1"]) == 0
    assert (out / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    for name in NAMES:
        assert differences(whole / name, out / name, checkpoints=["ticket/last.ckpt"]) == []


def test_of_several_at_once_one_that_fails_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compare", *QUICK, *WANTED, "compare.workers=2", "optimizer.lr=1e30", f"output={tmp_path}/out"]) == 2
    out, err = capsys.readouterr()
    assert (
        "_0.3_0: the loss became nan" in err and err.count("\n") == 1 and "left" not in out
    )  # of the first two, either
    assert not multiprocessing.active_children()


def test_stopped_in_one_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from zerogate.training.classifier import Classifier

    step = Classifier.training_step

    def stopped(module: Any, batch: Any, batch_idx: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", stopped)
    assert main(["compare", *QUICK, *WANTED, f"output={tmp_path}/out"]) == 130
    assert f"zerogate compare resume={tmp_path}/out\n" in capsys.readouterr().out
    assert not multiprocessing.active_children()


def lengths(overrides: list[str]) -> dict[str, list[str]]:
    config = compose(overrides, "compare")
    found = {}
    for one in comparing.searches_of(config, overrides):
        wanted = compose(list(one.overrides), "tickets").search
        found[one.name] = [wanted.rounds, str(wanted.length), str(wanted.final_length)]
    return found


def test_all_kinds_train_equally_long() -> None:
    shared = ["search.rounds=3", "search.length=4ep5it", "search.final_length=6", "compare.seeds=1", "seed=7"]
    shared += ["compare.densities=[0.5]", "compare.kinds=[cs,imp,gradual,oneshot,random,small_dense,dense]"]
    rounds = {f"{kind}_0.5_7": [3, "4ep5it", "6"] for kind in ("cs", "imp")}
    for equal, length in (("search", "18ep15it"), ("final", "6ep")):
        others = {f"{kind}_0.5_7": [0, "4ep5it", length] for kind in ("gradual", "oneshot", "random", "small_dense")}
        assert lengths([*shared, f"compare.equal={equal}"]) == rounds | others | {"dense_1_7": [0, "4ep5it", length]}


def test_dense_is_one_for_all_densities() -> None:
    names = lengths(["compare.kinds=[random,dense]", "compare.densities=[0.5,0.5,0.05]", "compare.seeds=1"])
    assert [*names] == ["random_0.5_0", "dense_1_0", "random_0.05_0"]


def test_a_kind_is_one_search_under_its_long_and_its_short_name() -> None:
    shared = ["compare.densities=[0.5]", "compare.seeds=1"]
    short = lengths([*shared, "compare.kinds=[cs,imp]"])
    assert [*short] == ["cs_0.5_0", "imp_0.5_0"]
    assert lengths([*shared, "compare.kinds=[continuous_sparsification,iterative_magnitude]"]) == short
    assert lengths([*shared, "compare.kinds=[cs,continuous_sparsification,iterative_magnitude,imp]"]) == short
    assert [*lengths([*shared, "compare.kinds=[cs,imp]", "search.kind=mine"])] == [*short]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["compare.kinds=[cs,nope]"], "unknown ticket 'nope'; choose one of continuous_sparsification, cs"),
        (["compare.kinds=[]"], "compare.kinds=[]"),
        (["compare.densities=[0.5,0]"], "compare.densities=[0.5, 0]"),
        (["compare.seeds=0"], "compare.seeds=0"),
        (["compare.workers=0"], "compare.workers=0"),
        (["compare.equal=epochs"], "search or final"),
        (["compare.nope=1"], "`zerogate compare --help`"),
        (["search.density=0.2"], "compare.densities"),
        (["ticket=imp"], "compare.kinds=[imp]"),
        (["resume=no/such"], "no/such"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overrides: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(capsys, ["compare", *QUICK, *WANTED, "output=out", *overrides], way_out=False)
    assert not [*tmp_path.rglob("*")]


def test_a_failing_search_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["compare", *QUICK, *WANTED, "optimizer.lr=1e30", f"output={tmp_path}/out"]) == 2
    assert "imp_0.3_0: the loss became nan" in capsys.readouterr().err


def test_accuracies_are_drawn_with_their_spread() -> None:
    rows: list[dict[str, Any]] = [
        {"kind": "dense", "density": None, "remaining": 1.0, "test_accuracy": 0.99, "test_accuracy_std": 0.01},
        {"kind": "cs", "density": 0.5, "remaining": 0.5, "test_accuracy": 0.98, "test_accuracy_std": 0.02},
        {"kind": "cs", "density": 0.1, "remaining": 0.09, "test_accuracy": 0.9, "test_accuracy_std": None},
    ]
    axes = plots.accuracy_against_remaining(rows).axes[0]
    assert axes.get_xscale() == "log"
    (bars,) = axes.containers
    line, _, (lines,) = bars
    assert line.get_xydata().tolist() == [[9, 90], [50, 98]]
    assert [segment[:, 1].tolist() for segment in lines.get_segments()] == [[90, 90], [96, 100]]
    dense: Iterator[Any] = (each for each in axes.lines if each.get_label() == "dense")
    assert list(next(dense).get_ydata()) == [99, 99]
