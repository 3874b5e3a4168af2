"""Targets beside bisected penalties: what was asked for, what is left, what the projection changed, the accuracy.

    python benchmarks/budgets.py                                       # the digits; nothing is downloaded
    python benchmarks/budgets.py --mnist DIR --cifar10 DIR             # LeNet-5 and ResNet-20 as well, short runs
    python benchmarks/budgets.py --render                              # docs/budgets.md anew from what is recorded

No option but the target is changed from one row to the next. What is recorded in benchmarks/results/budgets.json stays;
rows that are missing are run and written one by one, so that a stop loses nothing.

Beside a target stands a `Penalty` over the same cost that ends near the same budget. λ runs through a grid that all
targets of a network share; where no run ends within a point of a target, λ is bisected. What is shown is the run that
ends nearest to the target among those at most a point above it, seed by seed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig

from budget_settings import SETTINGS, Setting
from zerogate import Sparsified, Target, data
from zerogate.data import ImageData
from zerogate.training import build as building
from zerogate.training.build_gates import state_steps
from zerogate.training.config.compose import compose
from zerogate.training.provenance import origin
from zerogate.training.scores import evaluate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "budgets.json"
PAGE = ROOT / "docs" / "budgets.md"
POINT = 0.01


class Book:
    """The record on disk: rows of targets, runs of penalties. Written after each."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        known = json.loads(path.read_text()) if path.exists() else {}
        self.rows: list[dict[str, Any]] = known.get("rows", [])
        self.penalties: list[dict[str, Any]] = known.get("penalties", [])

    def write(self) -> None:
        record = {"rows": self.rows, "penalties": self.penalties, "command": self.command}
        record |= {"threads": torch.get_num_threads(), **origin()}
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


def run(setting: Setting, where: dict[str, str], seed: int, *options: str) -> tuple[Sparsified, float]:
    """The handle and the test accuracy of a run: as by `zerogate train`, without checkpoints, logs and validation."""
    given = [*setting.options, *options, f"seed={seed}"]
    given += [f"data.path={where[setting.data]}"] if setting.data else []
    config, device = compose(given), torch.device("cpu")
    batches = building.load_batches(config, images(config), device)
    module = building.make_classifier(config, batches, device)
    sparse: Sparsified = module.sparse
    state_steps(sparse, building.total_steps(config, batches))
    (optimizer,), schedules = module.configure_optimizers()
    module.model.train()
    for _ in range(config.trainer.max_epochs):
        for x, y in batches.train:
            (F.cross_entropy(module.model(x), y) + sparse.loss()).backward()
            optimizer.step()
            optimizer.zero_grad()
            sparse.step()
            advance(schedules, "step")
        advance(schedules, "epoch")
    sparse.project()
    return sparse, evaluate(module.model, batches.test, batches.data.num_classes)["accuracy"]


def advance(schedules: Iterable[dict[str, Any]], interval: str) -> None:
    """Steps the schedules that count such intervals."""
    for schedule in schedules:
        if schedule["interval"] == interval:
            schedule["scheduler"].step()


def density(sparse: Sparsified, over: str) -> float:
    """Share of the dense network's parameters or MACs that is deployed."""
    return getattr(sparse.cost(), over) / getattr(sparse.dense_cost, over)


def largest(sparse: Sparsified, over: str) -> float:
    """The share of the dense cost that the largest unit has in the dense network: how far a unit may fall short."""
    if sparse.unit == "weight":
        return 0.0
    found = 0.0
    for group in sparse.groups:
        is_open = torch.ones(len(sparse.logits), dtype=torch.bool)
        is_open[group.slice.start] = False
        cost = getattr(sparse.cost_model.exact(is_open), over)
        found = max(found, 1 - cost / getattr(sparse.dense_cost, over))
    return found


@functools.cache
def _images(name: str, path: str | None, limit: int | None, validation: int | None, stratified: bool) -> ImageData:
    return data.load(name, path, limit=limit, validation=validation, stratified=stratified)


def images(config: DictConfig) -> ImageData:
    """Decoded once for all runs."""
    d = config.data
    return _images(d.name, d.get("path"), d.limit, d.validation, d.stratified)


def measure_targets(book: Book, setting: Setting, where: dict[str, str], seed: int) -> None:
    for over in setting.costs:
        for share in setting.shares:
            row = book.row(setting.name, over, share)
            if seed not in row["seeds"]:
                sparse, accuracy = run(setting, where, seed, "objective=target", f"objective.{over}={share}")
                assert isinstance(sparse.objective, Target)
                row["units"], row["largest"] = len(sparse.logits), largest(sparse, over)
                row["seeds"].append(seed)
                row["reached"].append(density(sparse, over))
                row["projected"].append(sparse.objective.projected)
                row["test_accuracy"].append(accuracy)
                book.write()
                print(
                    setting.name, over, share, f"{row['reached'][-1]:.4f}", row["projected"][-1], accuracy, flush=True
                )


def measure_penalties(book: Book, setting: Setting, where: dict[str, str], seed: int) -> None:
    def penalty(over: str, weight: float) -> None:
        options = ("objective=penalty", f"objective.over={over}", "objective.reduce=mean", f"objective.weight={weight}")
        sparse, accuracy = run(setting, where, seed, *options)
        book.penalties.append(
            {
                "setting": setting.name,
                "over": over,
                "weight": weight,
                "seed": seed,
                "density": density(sparse, over),
                "test_accuracy": accuracy,
            }
        )
        book.write()

    for over in setting.penalised:
        for weight in setting.weights:
            if weight not in [p["weight"] for p in book.runs(setting.name, over, seed)]:
                penalty(over, weight)
        for share in setting.compared:
            for _ in range(setting.tries):
                between = bisect(book.runs(setting.name, over, seed), share)
                if between is None:
                    break
                penalty(over, between)
        print(setting.name, over, "penalties of seed", seed, flush=True)


def page(record: dict[str, Any]) -> str:
    """docs/budgets.md: a pure function of the record."""
    lines = [
        "# Budgets",
        "",
        "What was asked for, what is left, and the accuracy; beside it that of penalties whose λ was bisected to the same",
        "budget. Means ± standard deviations over the seeds; accuracies are those of the compacted networks on the test",
        "images, *n* is the number of seeds of the target, and every seed of either has its own figure of what is left;",
        "cells are empty where no penalty has been run. Drawn from [budgets.json](../benchmarks/results/budgets.json) by",
        "`python benchmarks/budgets.py --render`; the benchmark's own text says how it is run.",
    ]
    for setting in SETTINGS:
        rows = [row for row in record["rows"] if row["setting"] == setting.name and row["seeds"]]
        if not rows:
            continue
        options = " ".join(setting.options)
        lines += [
            "",
            f"## {setting.name}",
            "",
            f"`{options}`, `{setting.gate}`. No option but the target was changed.",
            "",
        ]
        lines += ["| target | n | left % | gates changed | accuracy % | λ by hand: left % | accuracy % |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for row in sorted(rows, key=lambda r: (r["over"] == "macs", r["target"])):
            lines.append(_line(row, record["penalties"]))
    lines += ["", f"Commit {record['commit']}, {record['device']}, torch {record['versions']['torch']}.", ""]
    return "\n".join(lines)


def _line(row: dict[str, Any], penalties: list[dict[str, Any]]) -> str:
    beside: list[dict[str, Any]] = []
    for seed in row["seeds"]:
        runs = [p for p in penalties if (p["setting"], p["over"], p["seed"]) == (row["setting"], row["over"], seed)]
        found = nearest(runs, row["target"])
        beside += [] if found is None else [found]
    left = ", ".join(f"{100 * x:.1f}" for x in row["reached"])
    changed = ", ".join(str(n) for n in row["projected"])
    cells = [
        f"{row['over']} {100 * row['target']:.0f} %",
        str(len(row["seeds"])),
        left,
        f"{changed} of {row['units']:,}",
        _mean(row["test_accuracy"]),
        ", ".join(f"{100 * run['density']:.1f}" for run in beside) if beside else "",
        _mean([run["test_accuracy"] for run in beside]) if beside else "",
    ]
    return f"| {' | '.join(cells)} |"


def _mean(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of MNIST in parquet layout")
    parser.add_argument("--cifar10", help="folder of CIFAR-10 in parquet layout")
    parser.add_argument("--render", action="store_true", help="only write docs/budgets.md")
    parser.add_argument("--seeds", type=int, default=3, help="at most so many of each row")
    parser.add_argument("--only", nargs="+", choices=("targets", "penalties"), default=("targets", "penalties"))
    args = parser.parse_args()
    if not args.render:
        where = {"mnist": args.mnist, "cifar10": args.cifar10}
        shown = [f"--{name} DIR" for name, folder in where.items() if folder]  # no machine's paths
        book = Book(RESULTS, " ".join(["python benchmarks/budgets.py", *shown]))
        wanted = [s for s in SETTINGS if s.data is None or where[s.data]]
        for part, measure in (("targets", measure_targets), ("penalties", measure_penalties)):
            for seed in range(args.seeds if part in args.only else 0):
                for setting in wanted:
                    if seed < setting.seeds:
                        measure(book, setting, where, seed)
    record = json.loads(RESULTS.read_text())
    PAGE.write_text(page(record))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
