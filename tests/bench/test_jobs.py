"""Jobs: what decides a digest, and what shortens a table."""

from __future__ import annotations

from typing import Any

import pytest

from tiny_table import TINY
from zerogate.bench import jobs as job_module
from zerogate.bench.jobs import jobs, shorten
from zerogate.bench.table import load, parse
from zerogate.errors import ConfigError


def test_a_digest_is_of_what_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def digests(content: dict[str, Any] = TINY, seeds: tuple[int, ...] = (0,), budget: float = 1.0) -> list[str]:
        return [job.digest for job in jobs(parse("tiny", content), "cpu", seeds, budget)]

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
    leaves = job_module._composed
    monkeypatch.setattr(job_module, "_composed", lambda *args: leaves(*args) | {"new.option": None, "new.flag": False})
    assert digests() == plain
    monkeypatch.setattr(job_module, "_composed", lambda *args: leaves(*args) | {"new.option": 1})
    assert not set(digests()) & set(plain)


def test_a_budget_shortens_everything_alike() -> None:
    asked = jobs(load("googlenet"), "cpu", [0], 0.1, None, "dense,tuned-10,tpl-params-0.64,small-0.64")
    by_id = {job.row.id: job for job in asked}
    assert by_id["dense"].config["trainer.max_epochs"] == 18
    assert by_id["dense"].config["scheduler.milestones"] == [10, 15]
    assert by_id["tuned-10"].config["scheduler.milestones"] == [1, 6, 10, 13, 16]
    assert by_id["tpl-params-0.64"].options["learn"] == 6
    assert {job.total_epochs for job in asked} == {18, 36}
    assert {by_id[name].total_epochs for name in ("tuned-10", "tpl-params-0.64", "small-0.64")} == {36}
    assert shorten("2ep100it", 0.25) == "1ep100it"  # a whole epoch at least


def test_epochs_by_device() -> None:
    table = load("lenet")
    for profile, first, second in (("cpu", 60, 30), ("cuda", 200, 200)):
        asked = jobs(table, profile, [0])
        assert {job.epochs for job in asked if job.row.id.startswith("l300")} == {first}
        assert {job.epochs for job in asked if job.row.id.startswith("l5")} == {second}
        assert {job.setting for job in asked} == {profile}
    assert {job.epochs for job in jobs(table, "cpu", [0], epochs=3)} == {3}
    with pytest.raises(ConfigError, match="epochs=3"):
        jobs(load("googlenet"), "cpu", [0], epochs=3)


def test_fewer_images_for_all_rows_alike() -> None:
    table = load("googlenet")
    asked = jobs(table, "cpu", [0], 0.05, None, "ours-0.39,tp-params-0.39,small-0.39", 12800)
    assert {job.config["data.limit"] for job in asked} == {12800} and {job.setting for job in asked} == {"limit=12800"}
    whole = jobs(table, "cpu", [0], 0.05, None, "ours-0.39,tp-params-0.39,small-0.39")
    assert not {job.digest for job in asked} & {job.digest for job in whole}
    both = jobs(load("lenet"), "cpu", [0], epochs=3, limit=600, only="l5-dense")
    assert both[0].setting == "epochs=3,limit=600"


def test_a_precision_for_all_rows_alike() -> None:
    table, wanted = load("googlenet"), "ours-0.39,tp-params-0.39,small-0.39"
    asked = jobs(table, "cpu", [0], 0.05, None, wanted, precision="bf16-mixed")
    assert {job.config["trainer.precision"] for job in asked} == {"bf16-mixed"}
    assert {job.setting for job in asked} == {"precision=bf16-mixed"}
    assert not {job.digest for job in asked} & {job.digest for job in jobs(table, "cpu", [0], 0.05, None, wanted)}
