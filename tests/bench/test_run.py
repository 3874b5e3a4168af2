"""Runs of a table: what is missing is run, once, and goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tiny_table import TABLE, a_record, a_run
from zerogate.bench.jobs import jobs
from zerogate.bench.records import Records
from zerogate.bench.run import TableRun
from zerogate.bench.table import parse
from zerogate.bench.worker import is_locked
from zerogate.sweeps.estimate import Paces, seconds_left


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the table has been run, and what was said meanwhile."""
    folder = tmp_path_factory.mktemp("whole")
    run, said = a_run(folder)
    assert len(run.tasks) == 2
    run.run()
    assert run.failed == {} and run.signum is None
    return folder, said


def test_what_is_missing_is_run_and_recorded(whole: tuple[Path, list[str]]) -> None:
    folder, said = whole
    found = Records(folder / "records").find("tiny")
    assert found.problems == [] and {record["row"] for record in found.records} == {"dense", "ours-0.5"}
    for record in found.records:
        assert len(record["curve"]) == 1 + 2 and record["curve"][0].startswith("epoch,step,")
        assert record["config"]["trainer.max_epochs"] == 2 and record["seconds"] is not None and record["seconds"] > 0
        assert str(folder) not in json.dumps(record)  # no machine's paths
        assert {"test_accuracy", "params", "macs", "widths", "latency_b1", "latency_b64"} <= record["figures"].keys()
    run, _ = a_run(folder)
    ours = found.by_digest()[run.jobs[1].digest]
    assert ours["figures"]["params"] <= 0.5 * ours["figures"]["dense_params"]
    assert ours["figures"]["total_epochs"] == 4
    assert "init_from={run:dense}" in ours["overrides"] and "init_from" not in ours["config"]
    assert (
        ours["command"]
        == "zerogate bench tiny only=ours-0.5 seeds=1 data.cache_dir=DIR trainer.accelerator=cpu budget=0.5"
    )
    assert any("time left unknown" in line for line in said) and any(line.startswith("2 of 2 runs") for line in said)
    for job, record in zip(run.jobs, map(found.by_digest().get, (job.digest for job in run.jobs)), strict=True):
        assert record is not None and f"done: {job.name} in {record['seconds']:.0f} s" in said


def test_what_is_recorded_is_not_run(whole: tuple[Path, list[str]]) -> None:
    again, said = a_run(whole[0])
    assert again.tasks == []
    again.run()
    assert said == []


def test_what_is_lost_is_run_again(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    """A lost record is made again from the run's files, a lost run from its checkpoint's origin, which is trained anew."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    path = next((tmp_path / "records/tiny").glob("ours*"))
    figures = json.loads(path.read_text())["figures"]
    path.unlink()
    for folder in (tmp_path / "out/tiny").iterdir():
        (folder / "result.json").unlink()
        (folder / "last.ckpt").unlink()
        (folder / "best.ckpt").unlink()
        (folder / "metrics.csv").unlink()
    third, said = a_run(tmp_path)
    assert [task.job.row.id for task in third.tasks] == ["dense", "ours-0.5"]
    third.run()
    assert "recorded, but the checkpoint" in said[0] and third.failed == {}
    assert len(list((tmp_path / "records/tiny").iterdir())) == 2
    repeated = json.loads(path.read_text())["figures"]
    for key in ("test_accuracy", "params", "widths", "val_accuracy"):
        assert repeated[key] == figures[key]


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    waited: list[str] = []

    def listen(line: str) -> None:
        if "by other processes" in line and not waited:  # the other one stops before it has recorded anything
            waited.append(line)
            fcntl.flock(lock, fcntl.LOCK_UN)

    run, said = a_run(tmp_path, listen=listen)
    folder = run.tasks[0].folder
    folder.mkdir(parents=True)
    assert not is_locked(folder)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked(folder)
        run.run()
    assert run.failed == {} and "1 by other processes" in waited[0] and "by other processes" not in said[-1]
    assert any("dense seed 0 is being run by another process; waiting for it" in line for line in said)
    assert {record["row"] for record in run.records.find("tiny").records} == {"dense", "ours-0.5"}


def test_what_another_process_has_recorded_is_not_run_again(tmp_path: Path) -> None:
    def listen(line: str) -> None:
        if "by other processes" in line:
            run.records.add(a_record(digest=run.jobs[0].digest))
            fcntl.flock(lock, fcntl.LOCK_UN)

    run, said = a_run(tmp_path, only="dense", listen=listen)
    folder = run.tasks[0].folder
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run.run()
    assert run.failed == {} and any(line.startswith("done elsewhere: ") for line in said)
    assert {path.name for path in folder.iterdir()} == {"lock", "log.txt"}


def test_a_run_with_a_figure_of_another_among_its_overrides(tmp_path: Path) -> None:
    short = ["experiment=digits_tickets", "data.limit=64", "model.width=4", "search.rounds=1", "search.length=1",
             "search.final_length=1", "search.rewind=1it"]  # fmt: skip
    rows = [{"id": "cs", "label": "cs", "kind": "tickets", "overrides": [*short, "gate.initial_value=-0.02"]},
            {"id": "imp", "label": "imp", "kind": "tickets",
             "overrides": [*short, "ticket=imp", "search.density={figure:cs:remaining}"]}]  # fmt: skip
    run, _ = a_run(tmp_path, budget=1.0, table=parse("tiny", {"title": "Tiny", "rows": rows}))
    assert run.jobs[1].config["search.density"] == "@cs"
    run.run()
    assert run.failed == {}
    cs, imp = (run.records.find("tiny").by_digest()[job.digest] for job in run.jobs)
    density = imp["config"]["search.density"]
    assert isinstance(density, float) and 0 < density == cs["figures"]["remaining"] < 1
    assert imp["figures"]["remaining"] == pytest.approx(
        cs["figures"]["remaining"], abs=1 / imp["figures"]["gated_weights"]
    )


def test_a_stopped_table_goes_on_where_it_was(tmp_path: Path) -> None:
    overrides = ["experiment=digits_dense", "data.limit=64", "model.width=4", "trainer.max_epochs=12"]
    rows = [{"id": "dense", "label": "dense", "kind": "train", "overrides": overrides}]
    table = parse("tiny", {"title": "Tiny", "rows": rows})
    begun = tmp_path / "out/tiny"

    def stop() -> None:
        deadline = time.monotonic() + 120
        while not list(begun.glob("*/metrics.csv")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    run, said = a_run(tmp_path, 1.0, table=table)
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    thread = threading.Thread(target=stop)
    thread.start()
    run.run()
    thread.join()
    assert run.signum == signal.SIGTERM and "stopping: what runs is being saved" in said
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers
    again, _ = a_run(tmp_path, 1.0, table=table)
    (task,) = again.tasks
    clock = json.loads((task.folder / "clock.json").read_text())
    assert clock["seconds"] > 0 and not clock["running"]
    assert 1 <= task.epochs_done() < 12
    again.run()
    (record,) = Records(tmp_path / "records").find("tiny").records
    whole, _ = a_run(tmp_path / "whole", 1.0, table=table)
    whole.run()
    (other,) = Records(tmp_path / "whole/records").find("tiny").records
    assert record["curve"] == other["curve"] and record["digest"] == other["digest"]
    assert record["figures"]["test_accuracy"] == other["figures"]["test_accuracy"]


def test_a_run_that_fails_is_said_and_what_needs_it_is_left_out(tmp_path: Path) -> None:
    run, said = a_run(tmp_path, extra=("data.path=no/such/folder",))  # a key that this data set does not have
    run.run()
    first, second = run.failed.values()
    assert "dense seed 0" in first and "data.path" in first and "log.txt" in first
    assert second == "ours-0.5 seed 0 needs dense seed 0"
    assert Records(tmp_path / "records").find("tiny").records == []
    assert sum(line.startswith("failed: ") for line in said) == 1
    log = (run.tasks[0].log).read_text().splitlines()
    assert log[-1].startswith("zerogate: error: ") and log[-1].removeprefix("zerogate: error: ") in first


def test_time_left_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerogate.training.provenance.device", lambda: "a CPU")
    asked = jobs(TABLE, "cpu", [0, 1, 2])
    records = Records(tmp_path)

    def left(workers: int) -> tuple[float, int]:
        run = TableRun(asked, records, tmp_path / "out", workers, 1)
        return seconds_left((), run.tasks, Paces(run.paces).of, workers)

    assert left(1) == (0.0, 6)  # nothing is known
    records.add(a_record(digest=asked[0].digest, seconds=40.0))  # 10 seconds an epoch
    assert asked[0].row.id == "dense" and left(1) == (120.0, 3)  # this one's checkpoint is not here, and needed
    records.add(a_record(row="ours-0.5", digest=asked[1].digest, seconds=60.0))
    assert left(1) == (2 * 40 + 2 * 60, 0)
    assert left(2) == (100.0, 0) and left(9) == (100.0, 0)  # one starts from the other
    monkeypatch.setattr("zerogate.training.provenance.device", lambda: "another CPU")
    assert left(1) == (0.0, 4)  # times of another machine say nothing
