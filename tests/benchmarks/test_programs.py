"""The programs of `benchmarks/` that train: each does a run as short as can be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import budgets
import loop
import repeat
import zerogate as zg

SHORT = ("data.limit=64", "data.batch_size=16", "model.width=4", "trainer.max_epochs=6")


@pytest.mark.parametrize(
    "schedule", [("scheduler=cosine",), ("scheduler=drops", "scheduler.at=[0.5]"), ("scheduler=none",)]
)
def test_a_run_of_the_budgets(schedule: tuple[str, ...]) -> None:
    setting = budgets.Setting("tiny", "HardConcrete", ("experiment=digits", *SHORT, *schedule), (), 1, (), ())
    sparse, accuracy = budgets.run(setting, {}, 0, "objective=target", "objective.params=0.5")
    assert 0 < budgets.density(sparse, "params") <= 0.5 and 0 <= accuracy <= 1


def test_schedules_count_steps_or_epochs() -> None:
    class Counting:
        steps = 0

        def step(self) -> None:
            self.steps += 1

    of_steps, of_epochs = Counting(), Counting()
    schedules = [{"interval": "step", "scheduler": of_steps}, {"interval": "epoch", "scheduler": of_epochs}]
    for interval in ("step", "step", "epoch"):
        budgets.advance(schedules, interval)
    assert (of_steps.steps, of_epochs.steps) == (2, 1)


@pytest.mark.parametrize("gate", [None, zg.HardConcrete()])
def test_a_run_of_the_grids(gate: zg.Gate | None) -> None:
    task = loop.Task("digits", "convnet", steps=6, width=4)
    objective = None if gate is None else zg.Target(params=0.5, steps=6)
    result = loop.run(task, "adam", 3e-3, gate, objective=objective, every=2, most=100)
    assert 0 <= result["test_accuracy"] <= 1
    assert gate is None or (0 < result["params"] <= 0.5 and [step for step, *_ in result["trace"]] == [1, 2, 4, 6])


def test_repeating_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(repeat, "__file__", str(tmp_path / "benchmarks/repeat.py"))
    command = ["repeat.py", "tiny", "--seeds", "2", "--", "experiment=digits", *SHORT, "trainer.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", command)
    repeat.main()
    record = json.loads((tmp_path / "benchmarks/results/tiny.json").read_text())
    assert record["n"] == 2 and len(record["figures"]["test_accuracy"]["values"]) == 2
    assert record["command"].startswith("python benchmarks/repeat.py tiny --seeds=2 -- experiment=digits")
