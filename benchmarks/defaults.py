"""Defaults over networks, data and optimizers: nothing is set but the target.

    python benchmarks/defaults.py                                  # the digits
    python benchmarks/defaults.py --mnist DIR --cifar10 DIR        # LeNet-300-100, LeNet-5 and ResNet-20 as well

Writes benchmarks/results/defaults.json, run by run; what is recorded there stays. Runs are short: from scratch, without
a schedule of the learning rate. Gates get the rate that `param_groups` gives them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import zerogate as zg
from loop import Task, run
from zerogate.training.provenance import origin

RESULTS = Path(__file__).parent / "results" / "defaults.json"
OPTIMIZERS = (("adam", 1e-3), ("adam", 3e-3), ("sgd", 0.05), ("sgd", 0.1))
GATES = (("HardConcrete", "channel"), ("SoftMask", "weight"), ("SoftMask", "channel"), ("HardConcrete", "weight"))


def grid(mnist: str | None, cifar10: str | None) -> list[tuple[str, Task, tuple[Any, ...], tuple[Any, ...], int]]:
    """Name, task, gates, targets, seeds."""
    low, middle = {"params": 0.1}, {"macs": 0.3}
    rows: list[Any] = [("digits, ConvNet", Task("digits", "convnet", 300, width=16), GATES, (low, middle), 2)]
    if mnist:
        rows.append(("MNIST, LeNet-300-100", Task("mnist", "lenet300", 600, path=mnist), GATES[:2], (low, middle), 2))
        rows.append(("MNIST, LeNet-5", Task("mnist", "lenet5", 300, path=mnist), GATES[:2], (low,), 1))
    if cifar10:
        rows.append(
            ("CIFAR-10, ResNet-20", Task("cifar10", "resnet20", 250, 32, path=cifar10), GATES[:2], (middle,), 1)
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of MNIST in parquet layout")
    parser.add_argument("--cifar10", help="folder of CIFAR-10 in parquet layout")
    parser.add_argument("--seeds", type=int, default=2, help="at most so many of each row")
    args = parser.parse_args()
    known: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    shown = [f"--{name} DIR" for name in ("mnist", "cifar10") if getattr(args, name)]  # no machine's paths
    command = " ".join(["python benchmarks/defaults.py", *shown])

    def record(row: dict[str, Any], task: Task, **options: Any) -> None:
        if any(all(old[key] == value for key, value in row.items()) for old in known):
            return
        known.append(row | run(task, row["optimizer"], row["lr"], seed=row["seed"], **options))
        origins = {"command": command, "threads": torch.get_num_threads(), **origin()}
        RESULTS.write_text(json.dumps({"rows": known, **origins}, indent=1) + "\n")
        print(*known[-1].values(), flush=True)

    for seed in range(args.seeds):
        for name, task, gates, targets, seeds in grid(args.mnist, args.cifar10):
            for optimizer, lr in OPTIMIZERS if seed < seeds else ():
                row = {"task": name, "steps": task.steps, "optimizer": optimizer, "lr": lr, "seed": seed}
                record(row | {"gate": None, "unit": None, "target": None}, task)
                for gate, unit in gates:
                    for target in targets:
                        record(
                            row | {"gate": gate, "unit": unit, "target": target},
                            task,
                            gate=getattr(zg, gate)(),
                            unit=unit,
                            objective=zg.Target(**target, steps=task.steps),
                        )


if __name__ == "__main__":
    main()
