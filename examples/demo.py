"""Nine small networks on scikit-learn's digits: dense, hard-concrete gates, continuous sparsification; one table.

Run it with `make demo`. Everything that is printed is measured here: accuracies on 360 test images that no training
run has seen, costs of the compacted network, its latency relative to the dense one.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import zerogate as zg
from zerogate.cost.stopwatch import latency_ratio
from zerogate.report import figures as plots
from zerogate.report.page import html_table, write_page
from zerogate.training.config.compose import compose
from zerogate.training.train import train

OUTPUT = Path("outputs/demo")
DENSE = OUTPUT / "dense"
SCRATCH, TUNED, TICKET = "from scratch", "from dense", "ticket"
RUNS: dict[str, tuple[str, list[str]]] = {
    "dense": ("dense", ["experiment=digits_dense"]),
    **{
        f"{SCRATCH}: λ={weight}": (f"scratch_{weight}", ["experiment=digits", f"objective.weight={weight}"])
        for weight in (0.1, 0.3, 1.0)
    },
    **{
        f"{TUNED}: λ={weight}": (
            f"tuned_{weight}",
            [
                "experiment=digits",
                "scheduler=cosine",
                f"init_from={DENSE}",
                "gate.droprate_init=0.05",
                f"objective.weight={weight}",
            ],
        )
        for weight in (1, 3, 10)
    },
    **{
        f"{TICKET}: s₀={value}": (
            f"ticket_{value}",
            ["experiment=digits_cs", "sparsify.unit=channel", f"gate.initial_value={value}"],
        )
        for value in (-0.2, -0.3)
    },
}


def main() -> None:
    console, start = Console(), time.perf_counter()
    if not console.is_terminal:
        console.width = 110  # a pipe would get the table cut to 80 columns
    results: dict[str, dict[str, Any]] = {}
    for label, (folder, overrides) in RUNS.items():
        console.rule(f"[bold]{label}", align="left")
        results[label] = train(compose([*overrides, f"output={OUTPUT / folder}", "overwrite=true"]))

    dense = zg.models.convnet()
    x = torch.randn(64, 1, 8, 8)
    for label, (folder, _) in RUNS.items():
        path = OUTPUT / folder / "compact.safetensors"
        small = zg.load(path, zg.models.convnet) if path.exists() else dense
        results[label]["latency"] = [latency_ratio(small, dense, x[:batch]) for batch in (1, 64)]

    head = ["network", "val %", "test %", "sparsity %", "parameters", "MACs", "latency 1", "latency 64"]
    rows = [
        [
            label,
            f"{100 * r['val_accuracy']:.1f}",
            f"{100 * r['test_accuracy']:.1f}",
            f"{100 * r['sparsity_params']:.1f}",
            f"{r['params']:,}",
            f"{r['macs']:,}",
            *(f"{ratio:.2f}×" for ratio in r["latency"]),
        ]
        for label, r in results.items()
    ]
    caption = "scratch, dense: hard concrete; ticket: continuous sparsification; latency: batch 1, 64"
    table = Table(title="digits: what is left, and what it costs", caption=caption)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    report = OUTPUT / "report.html"
    write_report(report, results, head, rows)
    console.print(f"report: {report}   ({time.perf_counter() - start:.0f} s)")


def write_report(path: Path, results: dict[str, dict[str, Any]], head: list[str], rows: list[list[str]]) -> None:
    """The table, and three figures: accuracy, the L0 term, channels."""
    histories = {
        label: l0_history(OUTPUT / folder, float(results[label]["lambda"]))
        for label, (folder, _) in RUNS.items()
        if label.startswith((SCRATCH, TUNED))
    }
    about = (
        "Costs of the compacted networks. From scratch, from dense: hard-concrete gates; ticket: continuous "
        "sparsification. Latency is the median ratio to the dense network, at batch 1 and 64."
    )
    sections = [
        ("Table", about, html_table(head, rows)),
        ("Accuracy against sparsity", "Right and up is better.", plots.svg(plots.accuracy_against_sparsity(results))),
        ("The L0 term over training", "Expected share of open gates.", plots.svg(plots.l0_over_training(histories))),
        ("Kept channels", "Of each group's channels (grey), those that stay.", plots.svg(plots.kept_channels(results))),
    ]
    write_page(path, "zerogate on digits", sections)


def l0_history(folder: Path, weight: float) -> list[tuple[float, float]]:
    """(epoch, L0 term without its weight) of a run."""
    with open(folder / "metrics.csv", newline="") as file:
        return [(float(row["epoch"]), float(row["train_l0"]) / weight) for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
