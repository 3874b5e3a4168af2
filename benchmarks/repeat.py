"""Repeats an experiment over seeds and records mean ± standard deviation of what it ends with.

    python benchmarks/repeat.py NAME --seeds 3 -- experiment=mnist_lenet300 data.path=DIR

Writes benchmarks/results/NAME.json; runs go to outputs/repeat/NAME/SEED. In an override, {seed} stands for the seed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from pathlib import Path

import torch

from zerogate.training.config.compose import compose
from zerogate.training.provenance import origin
from zerogate.training.train import train

FIGURES = ("val_accuracy", "test_accuracy", "sparsity_params", "sparsity_macs", "params", "macs", "compaction_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="+")
    args = parser.parse_args()
    results = []
    for seed in range(args.seeds):
        folder = f"outputs/repeat/{args.name}/{seed}"
        given = [override.replace("{seed}", str(seed)) for override in args.overrides]
        results.append(train(compose([*given, f"seed={seed}", f"output={folder}", "overwrite=true"])))
    shown = ["data.path=DIR" if o.startswith("data.path=") else o for o in args.overrides]  # no machine's paths
    record = {
        "name": args.name,
        "n": args.seeds,
        "figures": {
            figure: {"mean": statistics.mean(values), "std": statistics.stdev(values), "values": values}
            for figure in FIGURES
            if len(values := [r[figure] for r in results if r.get(figure) is not None]) > 1
        },
        "command": shlex.join(["python", "benchmarks/repeat.py", args.name, f"--seeds={args.seeds}", "--", *shown]),
        "threads": torch.get_num_threads(),
        **origin(),
        "versions": results[0]["versions"],
    }
    path = Path(__file__).parent / "results" / f"{args.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    for figure, value in record["figures"].items():  # type: ignore[attr-defined]
        print(f"{figure}: {value['mean']:.4f} ± {value['std']:.4f} (n={args.seeds})")


if __name__ == "__main__":
    main()
