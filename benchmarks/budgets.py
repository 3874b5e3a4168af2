"""Targets on the digits: what was asked for, what is left, what the projection changed, and the accuracy.

    python benchmarks/budgets.py --seeds 3 --shares 0.1 0.3 0.5 0.9

No option but the target is changed. Writes benchmarks/results/budgets.json; runs go to outputs/budgets.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from provenance import provenance

from zerogate.runs import compose, train

RECIPES = {
    "hard_concrete": ["experiment=digits"],
    "soft_mask": ["experiment=digits_cs"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=[n / 10 for n in range(1, 10)])
    parser.add_argument("--gates", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for gate in args.gates:
        for over in ("params", "macs"):
            for share in args.shares:
                runs = []
                for seed in range(args.seeds):
                    folder = f"outputs/budgets/{gate}_{over}_{share:g}_{seed}"
                    given = [*RECIPES[gate], "objective=target", f"objective.{over}={share}", f"seed={seed}"]
                    given += [f"output={folder}", "overwrite=true", "trainer.progress=none"]
                    runs.append(train(compose(given)))
                accuracy = [r["test_accuracy"] for r in runs]
                row = {
                    "gate": gate,
                    "over": over,
                    "target": share,
                    "reached": [r["target"]["reached"] for r in runs],
                    "projected": [r["target"]["projected"] for r in runs],
                    "units": sum(group["units"] for group in runs[0]["groups"]),
                    "test_accuracy": accuracy,
                }
                rows.append(row)
                reached = " ".join(f"{value:.4f}" for value in row["reached"])
                spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
                print(
                    f"{gate} {over} {share:.2f}: reached {reached}, projected {row['projected']} of {row['units']}, "
                    f"accuracy {statistics.mean(accuracy):.4f} ± {spread:.4f}",
                    flush=True,
                )
    command = shlex.join(["python", "benchmarks/budgets.py", *sys.argv[1:]])
    record = {"rows": rows, "n": args.seeds, **provenance(command)}
    path = Path(__file__).parent / "results" / "budgets.json"
    path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
