"""Tables of results: what is recorded, what is run, what is shown, and that the documents show what is recorded."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zerogate as zg
from support import close_randomly
from zerogate.bench import columns
from zerogate.bench import documents as page
from zerogate.bench import kinds as carrying
from zerogate.bench import render as rendering
from zerogate.bench import table as definitions
from zerogate.bench.command import bench, options
from zerogate.bench.networks import built_like, widths
from zerogate.bench.records import FORMAT, Records, sealed
from zerogate.bench.worker import busy
from zerogate.cli.main import main
from zerogate.errors import ConfigError, ZerogateError
from zerogate.sweeps.local import Queue
from zerogate.training.config import compose as settings
from zerogate.training.config.resume import resumed
from zerogate.training.run_folder import Run

ROOT = Path(__file__).parents[2]
TINY = {
    "title": "Tiny",
    "command": "zerogate bench tiny",
    "columns": ["test_accuracy", "params", "params_removed", "epochs"],
    "rows": [
        {"id": "dense", "label": "dense", "kind": "train", "overrides": ["experiment=digits_dense", "data.limit=64",
                                                                         "model.width=4", "trainer.max_epochs=4"]},
        {"id": "ours-$p", "label": "ours, $p", "kind": "train", "each": [{"p": 0.5}],
         "overrides": ["experiment=digits", "data.limit=64", "model.width=4", "trainer.max_epochs=4", "objective=target",
                       "objective.params=$p", "init_from={run:dense}"]},
    ],
}  # fmt: skip
TABLE = definitions.parse("tiny", TINY)


def a_record(**changes: Any) -> dict[str, Any]:
    plain = {
        "format": FORMAT, "table": "tiny", "row": "dense", "label": "dense", "kind": "train", "seed": 0, "budget": 1.0,
        "setting": "", "recipe": 1, "digest": "d0", "overrides": [], "config": {}, "command": "zerogate bench tiny",
        "commit": "abc", "device": "a CPU", "versions": {"torch": "2.9"}, "curve": [], "seconds": 60.0,
        "figures": {"test_accuracy": 0.9, "params": 1000, "density_params": 1.0, "total_epochs": 4},
        "finished": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return sealed(plain | changes)


def some_records() -> list[dict[str, Any]]:
    found = []
    for seed, accuracy in enumerate((0.9, 0.92)):
        figures = {"test_accuracy": accuracy, "params": 1000, "density_params": 1.0, "total_epochs": 4}
        found.append(a_record(seed=seed, digest=f"d{seed}", figures=figures))
    figures = {"test_accuracy": 0.905, "params": 400, "density_params": 0.4, "total_epochs": 8}
    return [*found, a_record(row="ours-0.5", seed=0, digest="o0", figures=figures)]


# ---------------------------------------------------------------------------------------------------------- records


def test_records_are_added_and_never_changed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first = records.add(a_record())
    before = first.read_bytes()
    second = records.add(a_record(figures={"test_accuracy": 0.1}))
    assert second != first and first.read_bytes() == before
    found = records.find("tiny")
    assert len(found.records) == 2 and found.problems == []
    assert found.by_digest()["d0"]["figures"]["test_accuracy"] == 0.9  # of two for the same run the first
    assert records.find("other").records == []
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, second.name])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[1]", "no record"),
        (lambda text: text.replace("0.9,", "0.99,"), "was changed"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2"),
        (lambda text: json.dumps({"format": 1}), "lacks"),
        (lambda text: "<<<<<<< HEAD\n" + text, "damaged"),
    ],
)
def test_damaged_records_are_named_and_not_used(tmp_path: Path, damage: Any, said: str) -> None:
    records = Records(tmp_path)
    good, bad = records.add(a_record()), records.add(a_record(seed=1, digest="d1"))
    bad.write_text(damage(bad.read_text()))
    found = records.find("tiny")
    assert [record["seed"] for record in found.records] == [0] and good.is_file()
    (problem,) = found.problems
    assert str(bad) in problem and said in problem and "\n" not in problem and "not used" in problem
    assert records.add(a_record(seed=1, digest="d1")) != bad  # what is damaged is not overwritten either


def test_a_record_lacks_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZerogateError, match="a record has"):
        Records(tmp_path).add({key: value for key, value in a_record().items() if key != "commit"})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ definitions


@pytest.mark.parametrize("name", definitions.names())
def test_every_table_is_well_formed(name: str) -> None:
    table = definitions.load(name)
    assert name in page.ORDER and table.title
    for row in table.rows:
        for key in row.goal or ():
            columns.column(key)
    for key in table.columns:
        columns.column(key)
    if table.source is None:
        for profile in definitions.PROFILES:
            jobs = definitions.jobs(table, profile, [0, 1])
            assert len({job.digest for job in jobs}) == len(jobs)
            assert all(jobs.index(need) < jobs.index(job) for job in jobs for need in job.needs)


def test_a_digest_is_of_what_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(content: dict[str, Any] = TINY, seeds: tuple[int, ...] = (0,), budget: float = 1.0) -> list[str]:
        return [job.digest for job in definitions.jobs(definitions.parse("tiny", content), "cpu", seeds, budget)]

    def changed(row: int, *overrides: str) -> dict[str, Any]:
        rows = [dict(entry) for entry in TINY["rows"]]  # type: ignore[attr-defined]
        rows[row]["overrides"] = [*rows[row]["overrides"], *overrides]
        return TINY | {"rows": rows}

    plain = digests()
    assert digests() == plain
    assert digests(changed(0, "trainer.progress=none", "name=other")) == plain
    assert digests(changed(1, "gate_lr=0.05")) == plain  # as it is anyway
    for other in (
        digests(seeds=(1,)),
        digests(budget=0.5),
        digests(changed(0, "optimizer.lr=0.1")),
        digests(TINY | {"version": 2}),
    ):
        assert not set(other) & set(plain)  # what starts from another run is another one, too
    tuned = digests(changed(1, "gate_lr=0.5"))
    assert tuned[0] == plain[0] and tuned[1] != plain[1]
    # Options that are new and off change nothing; new ones that are on do.
    leaves = definitions._composed
    monkeypatch.setattr(definitions, "_composed", lambda *args: leaves(*args) | {"new.option": None, "new.flag": False})
    assert digests() == plain
    monkeypatch.setattr(definitions, "_composed", lambda *args: leaves(*args) | {"new.option": 1})
    assert not set(digests()) & set(plain)


def test_a_budget_shortens_everything_alike() -> None:
    jobs = definitions.jobs(
        definitions.load("googlenet"), "cpu", [0], 0.1, None, "dense,tuned-10,tpl-params-0.64,small-0.64"
    )
    by_id = {job.row.id: job for job in jobs}
    assert by_id["dense"].config["trainer.max_epochs"] == 18
    assert by_id["dense"].config["scheduler.milestones"] == [10, 15]
    assert by_id["tuned-10"].config["scheduler.milestones"] == [1, 6, 10, 13, 16]
    assert by_id["tpl-params-0.64"].options["learn"] == 6
    assert {job.total_epochs for job in jobs} == {18, 36}
    assert {by_id[name].total_epochs for name in ("tuned-10", "tpl-params-0.64", "small-0.64")} == {36}
    assert definitions._shorter("2ep100it", 0.25) == "1ep100it"  # a whole epoch at least


def test_epochs_by_device() -> None:
    table = definitions.load("lenet")
    for profile, first, second in (("cpu", 60, 30), ("cuda", 200, 200)):
        jobs = definitions.jobs(table, profile, [0])
        assert {job.epochs for job in jobs if job.row.id.startswith("l300")} == {first}
        assert {job.epochs for job in jobs if job.row.id.startswith("l5")} == {second}
        assert {job.setting for job in jobs} == {profile}
    assert {job.epochs for job in definitions.jobs(table, "cpu", [0], epochs=3)} == {3}
    with pytest.raises(ConfigError, match="epochs=3"):
        definitions.jobs(definitions.load("googlenet"), "cpu", [0], epochs=3)


def test_fewer_images_for_all_rows_alike() -> None:
    table = definitions.load("googlenet")
    jobs = definitions.jobs(table, "cpu", [0], 0.05, None, "ours-0.39,tp-params-0.39,small-0.39", 12800)
    assert {job.config["data.limit"] for job in jobs} == {12800} and {job.setting for job in jobs} == {"limit=12800"}
    whole = definitions.jobs(table, "cpu", [0], 0.05, None, "ours-0.39,tp-params-0.39,small-0.39")
    assert not {job.digest for job in jobs} & {job.digest for job in whole}
    both = definitions.jobs(definitions.load("lenet"), "cpu", [0], epochs=3, limit=600, only="l5-dense")
    assert both[0].setting == "epochs=3,limit=600"


def test_a_precision_for_all_rows_alike() -> None:
    table, wanted = definitions.load("googlenet"), "ours-0.39,tp-params-0.39,small-0.39"
    jobs = definitions.jobs(table, "cpu", [0], 0.05, None, wanted, precision="bf16-mixed")
    assert {job.config["trainer.precision"] for job in jobs} == {"bf16-mixed"}
    assert {job.setting for job in jobs} == {"precision=bf16-mixed"}
    assert not {job.digest for job in jobs} & {
        job.digest for job in definitions.jobs(table, "cpu", [0], 0.05, None, wanted)
    }


def test_the_papers_networks_have_as_many_parameters_as_the_table_says() -> None:
    dense = {"LeNet-300-100": zg.models.lenet300(), "LeNet-5-Caffe": zg.models.lenet5()}
    table = definitions.load("lenet")
    for row in table.rows:
        if row.kind:
            continue
        a, b, c, d = map(int, [*row.figures["widths"].split("-"), "0"][:4])
        if row.section == "LeNet-300-100":
            params = a * b + b + b * c + c + c * 10 + 10
        else:
            params = 25 * a + a + 25 * a * b + b + c * d + d + d * 10 + 10
        assert row.figures["params"] == params
        whole = sum(p.numel() for p in dense[row.section].parameters())
        shares = [
            float(other.label.split("=")[1][:-1]) for other in table.rows if other.goal and other.section == row.section
        ]
        assert any(params - whole * 1e-6 <= share * whole <= params for share in shares)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colums": []}, "no key 'colums'"),
        ({"rows": [{"id": "a", "label": "a", "knd": "train"}]}, "no key 'knd'"),
        ({"rows": [{"label": "a"}]}, "lacks its id"),
        ({"rows": [{"id": "a", "label": "a", "kind": "trian"}]}, "kind 'trian'"),
        ({"rows": [{"id": "a", "label": "a"}] * 2}, "two rows 'a'"),
        ({"rows": [{"id": "a", "label": "a", "kind": "train", "overrides": ["init_from={run:b}"]}]}, "no row 'b'"),
    ],
)
def test_slips_in_a_table(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        definitions.parse("tiny", TINY | change)


# ------------------------------------------------------------------------------------------------------------- runs


def a_queue(tmp_path: Path, budget: float = 0.5, only: str = "*", workers: int = 1) -> tuple[Queue, list[str]]:
    said: list[str] = []
    jobs = definitions.jobs(TABLE, "cpu", [0], budget, None, only)
    extra = [f"data.cache_dir={tmp_path}/cache", "trainer.accelerator=cpu"]
    return Queue(jobs, Records(tmp_path / "records"), tmp_path / "out", workers, 1, extra, said.append), said


def test_what_is_missing_is_run_and_what_is_recorded_is_not(tmp_path: Path) -> None:
    queue, said = a_queue(tmp_path)
    queue.run()
    assert queue.failed == {} and len(queue.missing) == 2
    found = Records(tmp_path / "records").find("tiny")
    assert found.problems == [] and {record["row"] for record in found.records} == {"dense", "ours-0.5"}
    for record in found.records:
        assert len(record["curve"]) == 1 + 2 and record["curve"][0].startswith("epoch,step,")
        assert record["config"]["trainer.max_epochs"] == 2 and record["seconds"] > 0
        assert str(tmp_path) not in json.dumps(record)  # no machine's paths
        assert {"test_accuracy", "params", "macs", "widths", "latency_b1", "latency_b64"} <= record["figures"].keys()
    ours = found.by_digest()[queue.jobs[1].digest]
    assert ours["figures"]["params"] <= 0.5 * ours["figures"]["dense_params"]
    assert ours["figures"]["total_epochs"] == 4
    assert "init_from={run:dense}" in ours["overrides"] and "init_from" not in ours["config"]
    assert any("time left unknown" in line for line in said) and any(line.startswith("2 of 2 runs") for line in said)

    again, said = a_queue(tmp_path)
    assert again.missing == []
    again.run()
    assert said == []
    # A lost record is made again from the run's files, a lost run from its checkpoint's origin, which is trained anew.
    path = next((tmp_path / "records/tiny").glob("ours*"))
    figures = json.loads(path.read_text())["figures"]
    path.unlink()
    for folder in (tmp_path / "out/tiny").iterdir():
        (folder / "result.json").unlink()
        (folder / "last.ckpt").unlink()
        (folder / "best.ckpt").unlink()
        (folder / "metrics.csv").unlink()
    third, said = a_queue(tmp_path)
    assert [job.row.id for job in third.missing] == ["dense", "ours-0.5"]
    third.run()
    assert "recorded, but the checkpoint" in said[0] and third.failed == {}
    assert len(list((tmp_path / "records/tiny").iterdir())) == 2
    repeated = json.loads(path.read_text())["figures"]
    for key in ("test_accuracy", "params", "widths", "val_accuracy"):
        assert repeated[key] == figures[key]


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    queue, said = a_queue(tmp_path)
    dense = queue.jobs[0]
    folder = queue.folder(dense)
    folder.mkdir(parents=True)
    assert not busy(folder)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert busy(folder)
        look, waited = queue._look_elsewhere, list[str]()

        def looking() -> bool:
            if queue.elsewhere and not waited:  # the other one stops before it has recorded anything
                waited.append(queue.progress())
                fcntl.flock(lock, fcntl.LOCK_UN)
            return look()

        queue._look_elsewhere = looking  # type: ignore[method-assign]
        queue.run()
    assert queue.failed == {} and not queue.elsewhere and "1 by other processes" in waited[0]
    assert any("dense seed 0 is being run by another process; waiting for it" in line for line in said)
    assert {record["row"] for record in queue.records.find("tiny").records} == {"dense", "ours-0.5"}


def test_what_another_process_has_recorded_is_not_run_again(tmp_path: Path) -> None:
    queue, said = a_queue(tmp_path, only="dense")
    queue.waiting.clear()
    queue.elsewhere.append(queue.jobs[0])
    queue.records.add(a_record(digest=queue.jobs[0].digest))
    queue.run()
    assert queue.failed == {} and any(line.startswith("done elsewhere: ") for line in said)
    assert not queue.folder(queue.jobs[0]).exists()


@pytest.mark.parametrize("channels_last", [False, True])
def test_latencies_compare_networks_in_one_memory_format(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    stored = zg.models.convnet(width=8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shapes = []

    def measured(small: nn.Module, dense: nn.Module, x: torch.Tensor, rounds: int) -> float:
        for tensor in (x, small.stem.conv.weight, dense.stem.conv.weight, dense.conv_b.weight):
            assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous(memory_format=layout)
        shapes.append(list(x.shape))
        return 1.0

    monkeypatch.setattr(carrying.timing, "latency_ratio", measured)
    carrying._latencies(stored, zg.models.convnet(width=8), (1, 8, 8), channels_last)
    assert shapes == [[1, 1, 8, 8], [64, 1, 8, 8]]


def test_a_run_with_a_figure_of_another_among_its_overrides(tmp_path: Path) -> None:
    short = ["experiment=digits_tickets", "data.limit=64", "model.width=4", "search.rounds=1", "search.length=1",
             "search.final_length=1", "search.rewind=1it"]  # fmt: skip
    rows = [{"id": "cs", "label": "cs", "kind": "tickets", "overrides": [*short, "gate.initial_value=-0.02"]},
            {"id": "imp", "label": "imp", "kind": "tickets",
             "overrides": [*short, "ticket=imp", "search.density={figure:cs:remaining}"]}]  # fmt: skip
    jobs = definitions.jobs(definitions.parse("tiny", {"title": "Tiny", "rows": rows}), "cpu", [0])
    assert jobs[1].config["search.density"] == "@cs"
    queue = Queue(jobs, Records(tmp_path / "records"), tmp_path / "out", 2, 1, ["data.cache_dir=" + str(tmp_path)],
                  lambda line: None)  # fmt: skip
    queue.run()
    assert queue.failed == {}
    cs, imp = (queue.records.find("tiny").by_digest()[job.digest] for job in jobs)
    assert 0 < imp["config"]["search.density"] == cs["figures"]["remaining"] < 1
    assert imp["figures"]["remaining"] == pytest.approx(
        cs["figures"]["remaining"], abs=1 / imp["figures"]["gated_weights"]
    )


def test_a_stopped_table_goes_on_where_it_was(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; import test_bench as t\n"
        "queue, _ = t.a_queue(Path(sys.argv[1]), 1.0, 'dense'); queue.run(); sys.exit(queue.signum or 0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), str(ROOT / "tests")], env=dict(os.environ)
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out/tiny").glob("*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    stopped = process.wait(60)
    queue, _ = a_queue(tmp_path, 1.0, "dense")
    if stopped == signal.SIGTERM and queue.missing:  # unless it was done before the signal came
        clock = json.loads((queue.folder(queue.jobs[0]) / "clock.json").read_text())
        assert clock["seconds"] > 0 and not clock["running"]
        assert 1 <= queue._epochs_done(queue.jobs[0]) < 4
    queue.run()
    (record,) = Records(tmp_path / "records").find("tiny").records
    whole, _ = a_queue(tmp_path / "whole", 1.0, "dense")
    whole.run()
    (other,) = Records(tmp_path / "whole/records").find("tiny").records
    assert record["curve"] == other["curve"] and record["digest"] == other["digest"]
    assert record["figures"]["test_accuracy"] == other["figures"]["test_accuracy"]


def test_a_run_goes_on_with_data_that_lie_elsewhere(tmp_path: Path) -> None:
    begun = carrying._configured(tmp_path, ["data=mnist", "seed=3"], ["data.path=/here"])
    assert (begun.output, begun.seed) == (str(tmp_path), 3)
    run = Run(tmp_path)
    run.begin(begun)
    going_on = carrying._configured(tmp_path, ["data=mnist", "seed=3"], ["data.path=/there"])
    config = resumed(going_on, run.folder, settings.load(run.config))
    assert (config.data.name, config.data.path, config.seed) == ("mnist", "/there", 3)


def test_a_run_that_fails_is_said_and_what_needs_it_is_left_out(tmp_path: Path) -> None:
    queue, said = a_queue(tmp_path)
    queue.extra = [*queue.extra, "data.path=no/such/folder"]  # a key that this data set does not have
    queue.run()
    first, second = queue.failed.values()
    assert "dense seed 0" in first and "data.path" in first and "log.txt" in first
    assert second == "ours-0.5 seed 0 needs dense seed 0"
    assert Records(tmp_path / "records").find("tiny").records == []
    assert sum(line.startswith("failed: ") for line in said) == 1


def test_time_left_is_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerogate.training.provenance.device", lambda: "a CPU")
    jobs = definitions.jobs(TABLE, "cpu", [0, 1, 2])
    records = Records(tmp_path)

    def left(workers: int) -> tuple[float, int]:
        return Queue(jobs, records, tmp_path / "out", workers, 1).left()

    assert left(1) == (0.0, 6)  # nothing is known
    records.add(a_record(digest=jobs[0].digest, seconds=40.0))  # 10 seconds an epoch
    assert jobs[0].row.id == "dense" and left(1) == (120.0, 3)  # this one's checkpoint is not here, and needed
    records.add(a_record(row="ours-0.5", digest=jobs[1].digest, seconds=60.0))
    assert left(1) == (2 * 40 + 2 * 60, 0)
    assert left(2) == (100.0, 0) and left(9) == (100.0, 0)  # one starts from the other
    monkeypatch.setattr("zerogate.training.provenance.device", lambda: "another CPU")
    assert left(1) == (0.0, 4)  # times of another machine say nothing


# -------------------------------------------------------------------------------------------------------- rendering

RENDERED = """\
## Tiny

```
zerogate bench tiny
```

|  | test accuracy % | parameters | parameters removed % | epochs | n |
| --- | --- | --- | --- | --- | --- |
| dense | 91.00 ± 1.41 | 1,000 ± 0 | 0.0 ± 0.0 | 4 ± 0 | 2 |
| ours, 0.5 | 90.50 | 400 | 60.0 | 8 | 1 |

3 runs on a CPU, torch 2.9, commits abc, 2026-01-02, 0.1 hours of runs."""


def test_a_table_is_a_function_of_its_records() -> None:
    records = some_records()
    shown = rendering.render(TABLE, records)
    assert shown.markdown() == RENDERED
    assert rendering.render(TABLE, records[::-1]).markdown() == RENDERED
    others = [a_record(row="gone"), a_record(table="other"), a_record(recipe=0)]
    assert rendering.render(TABLE, [*records, *others]).markdown().startswith(RENDERED[:-60])
    rows = list(csv.reader(io.StringIO(shown.csv())))
    assert rows[0][:6] == ["section", "row", "label", "n", "test_accuracy", "test_accuracy_std"]
    assert rows[1][1:6] == ["dense", "dense", "2", "91", "1.41"] and rows[2][5] == ""
    section = json.loads(shown.json())["sections"][0]
    assert section["rows"][0]["test_accuracy"]["values"] == [90.0, 92.0] and section["rows"][0]["seeds"] == [0, 1]


def test_of_several_configurations_the_latest_is_shown() -> None:
    newer = a_record(digest="e0", finished="2026-02-01T00:00:00Z", figures={"test_accuracy": 0.95})
    twin = a_record(digest="d0", finished="2026-01-03T00:00:00Z", figures={"test_accuracy": 0.1})  # the same run again
    (line,) = rendering.render(TABLE, [a_record(), twin]).sections[0].lines
    assert line.cells["test_accuracy"].values == (90.0,)
    (line,) = rendering.render(TABLE, [a_record(), newer]).sections[0].lines
    assert line.cells["test_accuracy"].values == (95.0,)


def test_budgets_and_devices_have_sections_of_their_own() -> None:
    records = [a_record(), a_record(budget=0.1, digest="b0")]
    assert [s.title for s in rendering.render(TABLE, records).sections] == [
        "",
        "budget 0.1: all numbers of epochs times 0.1",
    ]
    lenet = definitions.load("lenet")
    records = [
        a_record(table="lenet", row="l300-dense", setting=setting, digest=setting)
        for setting in ("cpu", "cuda", "epochs=5,limit=600,precision=bf16-mixed")
    ]
    titles = [section.title for section in rendering.render(lenet, records).sections]
    assert titles == [
        f"LeNet-300-100, {words}"
        for words in (
            "epochs: 5, images of each split: 600, precision: bf16-mixed",
            "as many epochs as for a GPU",
            "as many epochs as for a CPU",
        )
    ]


def test_a_table_says_the_keys_that_repeat_it() -> None:
    def commands(*records: dict[str, Any]) -> list[str]:
        return rendering.render(TABLE, records).commands

    assert commands() == commands(a_record()) == commands(a_record(setting="cpu")) == ["zerogate bench tiny"]
    short = a_record(budget=0.1, setting="cpu,limit=600,precision=bf16-mixed", digest="b0")
    keys = "budget=0.1 limit=600 precision=bf16-mixed"
    assert commands(short) == [f"zerogate bench tiny {keys}"]
    assert commands(short, a_record()) == ["zerogate bench tiny", f"zerogate bench tiny {keys}"]
    given = options(keys.split())
    assert (given.budget, given.limit, given.precision) == (0.1, 600, "bf16-mixed")


def test_goals_and_smallest_networks() -> None:
    rows: Any = TINY["rows"]
    dense, ours = rows
    content = TINY | {
        "smallest": [{"section": "", "what": "Smallest", "column": "test_accuracy", "limit": 90, "least": "params"},
                     {"section": "", "what": "Best", "column": "test_accuracy", "limit": 99, "least": "params"}],
        "rows": [dense, ours | {"goal": {"test_accuracy": {"row": "dense", "plus": -0.25}, "params": 400}}],
    }  # fmt: skip
    section = rendering.render(definitions.parse("tiny", content), some_records()).sections[0]
    assert section.lines[1].goal == "≥ 90.75: missed by 0.25; ≤ 400: met"
    assert section.facts[:2] == [
        "Smallest (test accuracy % ≥ 90): ours, 0.5, 400 parameters, 90.50, n = 1.",
        "Best (test accuracy % ≥ 99): none of these rows.",
    ]


def test_a_goal_beside_the_row_that_validation_chooses() -> None:
    rows: Any = TINY["rows"]
    dense, ours = rows
    rates = [dense | {"id": f"dense-{rate}"} for rate in (0.1, 0.2)]
    content = TINY | {
        "rows": [*rates, ours | {"overrides": [], "goal": {"test_accuracy": {"best": "dense-*", "plus": 0.5}}}]
    }
    table = definitions.parse("tiny", content)
    of_dense = [a_record(row=row, digest=row, figures={"test_accuracy": test, "val_accuracy": val}) for row, test, val in
                (("dense-0.1", 0.8, 0.9), ("dense-0.2", 0.95, 0.85))]  # fmt: skip
    ours_alone = [some_records()[2]]
    assert rendering.render(table, of_dense + ours_alone).sections[0].lines[2].goal == "≥ 80.50: met"
    assert rendering.render(table, ours_alone).sections[0].lines[0].goal == ""  # none to compare with yet
    both = ours | {"overrides": [], "goal": {"test_accuracy": [{"best": "dense-*"}, {"row": "dense-0.2"}]}}
    table = definitions.parse("tiny", TINY | {"rows": [*rates, both]})
    goal = rendering.render(table, of_dense + ours_alone).sections[0].lines[2].goal
    assert goal == "≥ 80.00: met; ≥ 95.00: missed by 4.50"


def test_the_plot_has_a_point_with_its_error_for_every_row() -> None:
    from matplotlib.container import ErrorbarContainer

    from zerogate.bench.figures import plot

    wanted = {"y": "test_accuracy", "x": ["params", "params_removed"], "series": {"dense": "dense", "ours": "ours-"}}
    table = definitions.parse("tiny", TINY | {"plot": wanted})
    figure = plot(rendering.render(table, some_records()))
    assert figure is not None and len(figure.axes) == 2
    bars = [c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert [bar.get_label() for bar in bars] == ["dense", "ours"]
    (x,), (y,) = bars[0].lines[0].get_data()
    assert (x, y) == (1000, 91)
    low, high = sorted(point[1] for point in bars[0].lines[2][1].get_segments()[0])
    assert (high - low) / 2 == pytest.approx(1.4142, abs=1e-3)
    assert plot(rendering.render(table, [])) is None


def test_sparsity_as_the_seed_repository_counts_it() -> None:
    dense = widths(zg.models.googlenet())
    small = json.loads(json.dumps(dense))
    assert columns.seed_repository_sparsity({"widths": small, "dense_widths": dense}) == 0
    small["stage1.0.branch_pool.conv"][1] = 0  # its own convolution is not counted there, what reads it is
    for name in ("branch1x1", "reduce3x3", "reduce5x5", "branch_pool"):
        small[f"stage1.1.{name}.conv"][0] -= 8
    total = 3 * 64 * 9 + 64 + 128 * 10 + 10
    for block in (*zg.models.googlenet().stage1, *zg.models.googlenet().stage2, *zg.models.googlenet().stage3):
        c, r3, r5 = (m.conv.in_channels for m in (block.branch1x1, block.branch3x3, block.branch5x5))
        o1, o3, o5 = (m.conv.out_channels for m in (block.branch1x1, block.branch3x3, block.branch5x5))
        total += c * (o1 + r3 + r5) + r3 * 9 * o3 + r5 * 25 * o5 + 5 * (o1 + o3 + o5)
    found = columns.seed_repository_sparsity({"widths": small, "dense_widths": dense})
    assert found == pytest.approx(100 * 8 * (24 + 32 + 16) / total)


# --------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("name", "shape"), [("googlenet", (3, 32, 32)), ("resnet20", (3, 32, 32)), ("lenet5", (1, 28, 28))]
)
def test_a_network_built_at_the_widths_of_a_compacted_one(name: str, shape: tuple[int, int, int]) -> None:
    make, x = getattr(zg.models, name), torch.randn(2, *shape)
    model = make(in_channels=shape[0])
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact().eval()
    built = built_like(small, make(in_channels=shape[0])).eval()
    assert widths(built) == widths(small) and type(built) is type(small)
    own = {id(p) for p in small.parameters()}
    assert not any(id(p) in own for p in built.parameters())
    assert [type(m) for m in built.modules()] == [type(m) for m in small.modules()]
    built.load_state_dict(small.state_dict())
    assert torch.equal(built(x), small(x))


def test_what_cannot_be_built_layer_by_layer_is_refused() -> None:
    make = lambda: nn.Sequential(nn.Linear(4, 8), nn.Embedding(5, 3), nn.LayerNorm(8))  # noqa: E731
    small = make()
    small[2] = nn.LayerNorm(6)
    with pytest.raises(ZerogateError, match="2 is a LayerNorm"):
        built_like(small, make())


# ---------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "lenot"], "unknown table 'lenot'; choose one of digits"),
        (["bench", "seeds=1"], "takes a table"),
        (["bench", "lenet", "seeds=0"], "seeds=0"),
        (["bench", "lenet", "precision=16"], "bf16-mixed"),
        (["bench", "lenet", "budget=2"], "budget=2"),
        (["bench", "lenet", "budget=x"], "budget=x"),
        (["bench", "lenet", "render=yes"], "render=yes"),
        (["bench", "lenet", "nope=1"], "no key 'nope'"),
        (["bench", "lenet", "quickly"], "KEY=VALUE"),
        (["bench", "lenet", "data.path="], "data.path="),
        (["bench", "lenet", "only=nothing"], "only=nothing"),
        (["bench", "googlenet", "epochs=3"], "epochs=3"),
        (["bench", "render", "docs=no/such"], "docs=no/such"),
        (["bench", "lenet", "--quick"], "--quick"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []


def test_help_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench"], ["bench", "--help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in definitions.names()) and "budget=SHARE" in out
    given = options(
        ["seeds=2", "budget=0.5", "data.path=/d", "trainer.accelerator=cpu", "render=true", "results=r", "limit=5",
         "precision=bf16-mixed"]
    )  # fmt: skip
    assert given.precision == "bf16-mixed"
    assert (given.seeds, given.budget, given.render, given.results, given.limit) == (2, 0.5, True, Path("r"), 5)
    assert given.extra == ("data.path=/d", "trainer.accelerator=cpu")


def test_rendering_alone_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    records.add(a_record(table="lenet", row="l300-dense", setting="cpu"))
    damaged = records.add(a_record(table="lenet", row="l300-dense", seed=1, setting="cpu", digest="d1"))
    damaged.write_text("{")
    assert bench(["lenet", "render=true", f"results={tmp_path}", f"output={tmp_path}/out"]) == 0
    out, err = capsys.readouterr()
    assert "| dense | 10.00 |" in out and str(damaged) in err and err.count("\n") == 1
    assert {path.suffix for path in (tmp_path / "out/lenet").iterdir()} == {".md", ".csv", ".json", ".svg"}


# -------------------------------------------------------------------------------------------------------- documents


def test_the_documents_show_what_is_recorded() -> None:
    for path, text in page.documents(ROOT / "benchmarks/results", ROOT / "docs").items():
        assert path.read_text() == text, f"{path} is not what the records render to; run: zerogate bench render"
    for name in page.ORDER:
        table, problems = page.rendered(definitions.load(name), ROOT / "benchmarks/results")
        assert problems == []
        if table.sections:
            assert (ROOT / f"docs/results/{name}.csv").read_text() == table.csv()
            assert (ROOT / f"docs/results/{name}.json").read_text() == table.json()


def test_older_results_that_are_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(ZerogateError, match=r"overhead\.json"):
        page.rendered(definitions.load("overhead"), tmp_path)
    (tmp_path / "zoo.json").write_text("{")
    with pytest.raises(ZerogateError, match=r"zoo\.json"):
        page.rendered(definitions.load("zoo"), tmp_path)


def test_a_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no place for results"):
        page.with_results("# nothing", "text")
    text = page.with_results(f"a\n{page.BEGIN}\nold\n{page.END}\nb", "new")
    assert text == f"a\n{page.BEGIN}\n\nnew\n\n{page.END}\nb" and page.with_results(text, "new") == text
