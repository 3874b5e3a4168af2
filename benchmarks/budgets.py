"""Targets beside bisected penalties: what was asked for, what is left, what the projection changed, the accuracy.

    python benchmarks/budgets.py                                       # the digits; nothing is downloaded
    python benchmarks/budgets.py --mnist DIR --cifar10 DIR             # LeNet-5 and ResNet-20 as well, short runs
    python benchmarks/budgets.py --render                              # docs/budgets.md anew from what is recorded

No option but the target is changed from one row to the next. What is recorded in benchmarks/results/budgets.json stays;
rows that are missing are run and written one by one, so that a stop loses nothing. Runs go to outputs/budgets.

Beside a target stands a `Penalty` over the same cost that ends near the same budget. λ runs through a grid that all
targets of a network share; where no run ends within a point of a target, λ is bisected. What is shown is the run that
ends nearest to the target among those at most a point above it, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provenance import provenance

from zerogate.runs import compose, train

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "budgets.json"
PAGE = ROOT / "docs" / "budgets.md"
POINT = 0.01


@dataclass(frozen=True)
class Setting:
    """A network, its data and its gates: the options of all its runs."""

    name: str
    gate: str
    options: tuple[str, ...]
    shares: tuple[float, ...]
    seeds: int
    weights: tuple[float, ...]  # of the penalty: the grid
    compared: tuple[float, ...]  # shares at which λ is bisected where no run of the grid is near
    costs: tuple[str, ...] = ("params", "macs")
    data: str | None = None  # the option that says where the data are
    tries: int = 3  # bisections for a share and a seed
    penalised: tuple[str, ...] = field(default=("params", "macs"))


DIGITS = tuple(n / 10 for n in range(1, 10))
SETTINGS = (
    Setting(
        "digits, ConvNet, channels",
        "HardConcrete",
        ("experiment=digits",),
        shares=DIGITS,
        seeds=3,
        weights=(0.03, 0.1, 0.3, 0.6, 1.2, 2.5, 5.0),
        compared=(0.1, 0.3, 0.5, 0.7, 0.9),
    ),
    Setting(
        "digits, ConvNet, weights",
        "SoftMask",
        ("experiment=digits_cs",),
        shares=DIGITS,
        seeds=3,
        weights=(0.01, 0.1, 0.3, 1.0, 3.0, 10.0),
        compared=(0.1, 0.3, 0.5, 0.7, 0.9),
    ),
    Setting(
        "MNIST, LeNet-5, channels",
        "HardConcrete",
        ("experiment=mnist_lenet5", "data.limit=6000", "trainer.max_epochs=5"),
        shares=(0.1, 0.3, 0.5),
        seeds=2,
        weights=(0.3, 1.0, 3.0),
        compared=(0.1, 0.3, 0.5),
        data="mnist",
        tries=1,
    ),
    Setting(
        "CIFAR-10, ResNet-20, weights",
        "SoftMask",
        ("experiment=resnet20_cs", "data.limit=3200", "data.batch_size=64", "trainer.max_epochs=5",
         "scheduler.milestones=[3,4]"),
        shares=(0.1, 0.3, 0.5),
        seeds=1,
        weights=(1.0, 10.0),
        compared=(0.1, 0.3, 0.5),
        data="cifar10",
        tries=2,
        penalised=("params",),
    ),
)  # fmt: skip


class Book:
    """The record on disk: rows of targets, runs of penalties. Written after each."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        known = json.loads(path.read_text()) if path.exists() else {}
        self.rows: list[dict[str, Any]] = known.get("rows", [])
        self.penalties: list[dict[str, Any]] = known.get("penalties", [])

    def write(self) -> None:
        record = {"rows": self.rows, "penalties": self.penalties, **provenance(self.command)}
        text = json.dumps(record, indent=1) + "\n"
        self.path.write_text(text)

    def row(self, setting: str, over: str, share: float) -> dict[str, Any]:
        for row in self.rows:
            if (row["setting"], row["over"], row["target"]) == (setting, over, share):
                return row
        row = {"setting": setting, "over": over, "target": share, "seeds": [], "reached": [], "projected": []}
        row |= {"units": 0, "largest": 0.0, "test_accuracy": []}
        self.rows.append(row)
        return row

    def runs(self, setting: str, over: str, seed: int) -> list[dict[str, Any]]:
        """Penalties of one seed, λ rising."""
        found = [p for p in self.penalties if (p["setting"], p["over"], p["seed"]) == (setting, over, seed)]
        return sorted(found, key=lambda p: p["weight"])


def nearest(runs: Iterable[dict[str, Any]], share: float) -> dict[str, Any] | None:
    """The run that ends nearest to a share, of those at most a point above it."""
    fitting = [run for run in runs if run["density"] <= share + POINT]
    return min(fitting, key=lambda run: abs(run["density"] - share), default=None)


def bisect(runs: list[dict[str, Any]], share: float) -> float | None:
    """The next λ to try; None where a run is within a point already, or none can be."""
    if any(abs(run["density"] - share) <= POINT for run in runs):
        return None
    above = max((run["weight"] for run in runs if run["density"] > share), default=None)
    if above is None:
        return None  # even the smallest λ leaves less
    below = min((run["weight"] for run in runs if run["density"] < share and run["weight"] > above), default=None)
    return 3 * above if below is None else float(f"{math.sqrt(above * below):.4g}")


def run(setting: Setting, where: dict[str, str], name: str, seed: int, *options: str) -> dict[str, Any]:
    given = [*setting.options, *options, f"seed={seed}", f"output=outputs/budgets/{name}_{seed}", "overwrite=true"]
    given += ["trainer.progress=none"] + ([f"data.path={where[setting.data]}"] if setting.data else [])
    return train(compose(given))


def measure_targets(book: Book, setting: Setting, where: dict[str, str]) -> None:
    for over in setting.costs:
        for share in setting.shares:
            row = book.row(setting.name, over, share)
            for seed in range(setting.seeds):
                if seed in row["seeds"]:
                    continue
                name = f"{setting.name.replace(', ', '_')}_{over}_{share:g}"
                result = run(setting, where, name, seed, "objective=target", f"objective.{over}={share}")
                row["units"] = sum(group["units"] for group in result["groups"])
                row["seeds"].append(seed)
                row["reached"].append(result["target"]["reached"])
                row["projected"].append(result["target"]["projected"])
                row["test_accuracy"].append(result["test_accuracy"])
                book.write()
            print(setting.name, over, share, *(f"{x:.4f}" for x in row["reached"]), row["projected"], flush=True)


def measure_penalties(book: Book, setting: Setting, where: dict[str, str]) -> None:
    def penalty(over: str, weight: float, seed: int) -> None:
        options = ("objective=penalty", f"objective.over={over}", "objective.reduce=mean", f"objective.weight={weight}")
        result = run(setting, where, f"{setting.name.replace(', ', '_')}_{over}_lambda{weight:g}", seed, *options)
        book.penalties.append(
            {
                "setting": setting.name,
                "over": over,
                "weight": weight,
                "seed": seed,
                "density": result[f"density_{over}"],
                "test_accuracy": result["test_accuracy"],
            }
        )
        book.write()

    for over in setting.penalised:
        for seed in range(setting.seeds):
            for weight in setting.weights:
                if weight not in [p["weight"] for p in book.runs(setting.name, over, seed)]:
                    penalty(over, weight, seed)
            for share in setting.compared:
                for _ in range(setting.tries):
                    weight_or_none = bisect(book.runs(setting.name, over, seed), share)
                    if weight_or_none is None:
                        break
                    penalty(over, weight_or_none, seed)
            print(setting.name, over, "penalties of seed", seed, flush=True)
