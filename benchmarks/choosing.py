"""The pictures of docs/choosing.md, of small runs on the digits.

    python benchmarks/choosing.py            # runs what benchmarks/results/choosing.json lacks, and draws
    python benchmarks/choosing.py --draw     # draws alone

Every run: the small convolutional network with 12 channels, 300 steps of Adam at 3e-3, one seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import zerogate as zg
from loop import Task, run
from zerogate.objectives.target import REACH, SETTLE
from zerogate.report.figures import svg
from zerogate.training.provenance import origin

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "choosing.json"
IMAGES = ROOT / "docs" / "images"
TASK = Task("digits", "convnet", 300, width=12)
LR = 3e-3
GATES: dict[str, tuple[Callable[[], zg.Gate], str]] = {
    "HardConcrete, channels": (zg.HardConcrete, "channel"),
    "SoftMask, weights": (lambda: zg.SoftMask(steps=TASK.steps), "weight"),
}
TARGETS = (0.2, 0.6)
WEIGHTS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = (0.1, 0.3, 0.7)
FACTORS = (1, 10, 30, 100, 1000)


def wanted() -> dict[str, Callable[[], dict[str, Any]]]:
    """Every run by its name."""
    runs: dict[str, Callable[[], dict[str, Any]]] = {}

    def add(name: str, gate: str, objective: Callable[[], Any], **options: Any) -> None:
        make, unit = GATES[gate]
        runs[f"{name} | {gate}"] = lambda: run(TASK, "adam", LR, make(), unit, objective(), **options)

    for gate in GATES:
        for share in TARGETS:
            add(f"pace {share}", gate, lambda share=share: zg.Target(params=share, steps=TASK.steps), every=5)
    for gate in GATES:
        for weight in WEIGHTS:
            add(f"penalty {weight}", gate, lambda weight=weight: zg.Penalty(weight, over="params"))
        for share in SHARES:
            add(f"target {share}", gate, lambda share=share: zg.Target(params=share, steps=TASK.steps))
    hard = "HardConcrete, channels"
    for factor in FACTORS:
        add(f"rate {factor} target", hard, lambda: zg.Target(params=0.3, steps=TASK.steps), gate_lr=factor * LR)
        add(f"rate {factor} penalty 0.1", hard, lambda: zg.Penalty(0.1, over="params"), gate_lr=factor * LR)
    return runs


def pace(rows: dict[str, Any]) -> Figure:
    """Share of parameters against the step, beside what is allowed."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    for axes, gate in zip(figure.subplots(1, 2, sharey=True), GATES, strict=True):
        for share, colour in zip(TARGETS, ("tab:blue", "tab:orange"), strict=True):
            trace = rows[f"pace {share} | {gate}"]["trace"]
            start = (trace[0][1] + trace[0][2]) / 2
            steps = [point[0] for point in trace]
            allowed = [start + (share - start) * min(1.0, step / (REACH * TASK.steps)) for step in steps]
            axes.plot(steps, allowed, color="0.6", linewidth=4, label="allowed" if share == TARGETS[0] else None)
            axes.plot(steps, [point[1] for point in trace], color=colour, label=f"deployed, target {share:.0%}")
            axes.plot(steps, [point[2] for point in trace], color=colour, linestyle=":", label="expected")
        for at, text in ((REACH, "reached"), (SETTLE, "settled")):
            axes.axvline(at * TASK.steps, color="0.8", linewidth=0.8)
            axes.annotate(text, (at * TASK.steps, 1.04), rotation=90, va="top", ha="right", fontsize=7, color="0.4")
        axes.set(title=gate, xlabel="step", ylim=(0, 1.05))
    figure.axes[0].set(ylabel="share of the parameters")
    figure.axes[1].legend(frameon=False, fontsize=7)
    return figure


def penalty(rows: dict[str, Any]) -> Figure:
    """What is left against λ, and accuracy against what is left, of penalties and targets."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for gate, colour in zip(GATES, ("tab:blue", "tab:orange"), strict=True):
        runs = [rows[f"penalty {weight} | {gate}"] for weight in WEIGHTS]
        left.plot(WEIGHTS, [r["params"] for r in runs], "o-", color=colour, label=f"Penalty, {gate}", markersize=4)
        right.plot(
            [r["params"] for r in runs], [100 * r["test_accuracy"] for r in runs], "o", color=colour, markersize=4
        )
        runs = [rows[f"target {share} | {gate}"] for share in SHARES]
        x, y = [r["params"] for r in runs], [100 * r["test_accuracy"] for r in runs]
        right.plot(x, y, "*", color=colour, markersize=9, label=f"Target, {gate}")
    left.set(xscale="log", xlabel="λ of Penalty(over='params')", ylabel="share of the parameters left", ylim=(0, 1.05))
    right.set(xlabel="share of the parameters left", ylabel="test accuracy (%)", xlim=(0, 1))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
    return figure


def rate(rows: dict[str, Any]) -> Figure:
    """What is left and the accuracy against the gates' learning rate."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, label in (("penalty 0.1", "Penalty(0.1, over='params')"), ("target", "Target(params=0.3)")):
        runs = [rows[f"rate {factor} {kind} | HardConcrete, channels"] for factor in FACTORS]
        left.plot(FACTORS, [r["params"] for r in runs], "o-", label=label, markersize=4)
        right.plot(FACTORS, [100 * r["test_accuracy"] for r in runs], "o-", label=label, markersize=4)
    left.set(ylabel="share of the parameters left", ylim=(0, 1.05))
    right.set(ylabel="test accuracy (%)")
    for axes in (left, right):
        axes.axvline(100, color="0.8", linewidth=0.8)
        axes.set(xscale="log", xlabel="gate_lr / lr")
        axes.legend(frameon=False, fontsize=7)
    return figure


def gates() -> Figure:
    """Hard-concrete gates over log α with where they start, and soft masks over s for several β."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    hard, soft = zg.HardConcrete(), zg.SoftMask()
    x = torch.linspace(-6, 6, 121)
    left.plot(x, hard.open_probability(x), label="P(z ≠ 0), in training")
    left.plot(x, hard.mask(x), label="ẑ, deployed")
    for droprate in (0.05, 0.2, 0.5):
        at = torch.logit(torch.tensor(1 - droprate))
        left.plot(at, hard.open_probability(at), "o", color="0.3")
        left.annotate(
            f"{droprate:g}", (at, hard.open_probability(at)), xytext=(5, -11), textcoords="offset points", fontsize=8
        )
    left.set(xlabel="log α, the logit; dots: droprate_init", ylabel="z")
    s = torch.linspace(-1, 1, 201)
    for beta in (1, 5, 20, 200):
        soft.temperature.fill_(beta)
        right.plot(s, soft.open_probability(s), label=f"β = {beta}")
    right.set(xlabel="s, the logit; initial_value is where it starts", ylabel="σ(β s)")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="only draw")
    args = parser.parse_args()
    rows: dict[str, Any] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    for name, train in wanted().items():
        if name not in rows and not args.draw:
            rows[name] = train()
            origins = {"command": "python benchmarks/choosing.py", "threads": torch.get_num_threads(), **origin()}
            RESULTS.write_text(json.dumps({"rows": rows, **origins}) + "\n")
            print(name, {key: value for key, value in rows[name].items() if key != "trace"}, flush=True)
    IMAGES.mkdir(exist_ok=True)
    pictures = {"pace": pace(rows), "penalty": penalty(rows), "rate": rate(rows), "gates": gates()}
    for name, figure in pictures.items():
        (IMAGES / f"{name}.svg").write_text(svg(figure))


if __name__ == "__main__":
    main()
