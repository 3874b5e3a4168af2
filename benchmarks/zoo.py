"""Gates on every architecture of the zoo: how long it takes to attach them, how much they reach, and whether removal is
exact; beside Torch-Pruning and torch-kirigami by their own recipes on the same models.

    make zoo                                    # all of it, printed and recorded
    OMP_NUM_THREADS=1 python benchmarks/zoo.py --models 'torchvision/*' '*vit*' --jobs measure race
    OMP_NUM_THREADS=1 python benchmarks/zoo.py --record --resume
    python benchmarks/zoo.py --refusals         # docs/refusals.md, from what is recorded

Each model and job runs in a fresh process with a limit of processor time, so that one that hangs or crashes becomes a row
with the reason. Prints a Markdown table. --record writes benchmarks/results/zoo.json after every model, and the refusals to
benchmarks/results/refusals.json; with --resume only what is not recorded yet is run.

Jobs. *measure*: groups, share, refusals, cost, and exactness in evaluation mode. *train*: exactness in training mode.
*race*: seconds. *tp* and *kirigami*: the other tools.

Columns. *seconds*: of one thread, for `zg.sparsify`, and for `DependencyGraph().build_dependency` in turns with it
(A B A B, medians); torch-kirigami's, with its search for candidates, in a process of its own. *share*: parameters in tensors
with an axis that holds a removable unit, of a group of at least two, over all parameters of the model; *of weights*: the
same over the weights of convolutions and linear layers. *fp64 error*: largest difference of the compacted and the gated
model after closing 30 % and 80 % of all units at random, relative to each output's largest entry, in float64, the worst over
both closings and inputs of two shapes. *in training*: the same in training mode with dropout of probability 0, and in
evaluation mode after that, with the statistics of both. *MACs*: "as counted" where torch's own counter of operations finds
the same number in the dense and both compacted networks. The others: *of weights*, those in tensors that became
smaller when half of all channels was removed by their own recipe; *exact*, the result runs and differs by no more than 1e-6
from the dense network without what was removed, else by how much. zoo_rivals.py says how that is found.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import resource
import shlex
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from zerogate.training.provenance import commit, origin
from zoo_jobs import errors, make, measure, race, reported, rival, sparsify, train
from zoo_models import ZOO
from zoo_models.entry import FOLDER, missing
from zoo_refusals import page, sorted_refusals
from zoo_table import medians, rounded, shown, summarise, table, verdict, without_places

__all__ = ["errors", "make", "sparsify"]

RESULTS = Path(__file__).parent / "results"
JOBS = ("measure", "race", "tp", "train", "kirigami")
"""In the order in which they are done: all models for one, then all for the next."""
LIBRARIES = {"race": "torch_pruning", "tp": "torch_pruning", "kirigami": "torch_kirigami"}
CONTEXT = multiprocessing.get_context("forkserver")


def child(job: str, name: str, folder: Path, limit: int, rounds: int) -> None:
    """One job on one model; results go to a file as they come, one JSON object a line."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with open(folder / "row", "a") as file:

        def emit(**values: Any) -> None:
            print(json.dumps(values), file=file, flush=True)

        with reported(emit, f"{job}_failure"):
            if job == "measure":
                measure(ZOO[name], emit)
            elif job == "train":
                train(ZOO[name], emit)
            elif job == "race":
                race(ZOO[name], emit, rounds)
            else:
                rival(ZOO[name], emit, job, rounds)


def run(job: str, name: str, limit: int, rounds: int) -> dict[str, Any]:
    """Runs a job in a process of its own and merges what it wrote, also if it did not reach the end.

    Not a task of `zerogate.sweeps`: its processes have imported Lightning, which would be measured too."""
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "row").touch()
        process = CONTEXT.Process(target=child, args=(job, name, folder, limit, rounds))
        process.start()
        process.join(20 * limit)  # on a machine with much else to do, a process may have little of a processor
        row: dict[str, Any] = {}
        if process.is_alive():
            process.kill()
            process.join()
            row[f"{job}_ended"] = f"not done in {20 * limit} s, waiting included"
        elif process.exitcode == -24:  # SIGXCPU
            row[f"{job}_ended"] = f"not done in {limit} s"
        elif process.exitcode:
            last = ((folder / "log").read_text(errors="replace").strip().splitlines() or [""])[-1]
            row[f"{job}_ended"] = f"ended with {process.exitcode}: {last[:200]}"
        for line in (folder / "row").read_text().splitlines():
            for key, value in json.loads(line).items():
                row[key] = [*row.get(key, []), *value] if key.endswith("seconds") and isinstance(value, list) else value
    return medians(row)


class Record:
    """benchmarks/results/zoo.json, written after every model; ``done`` of a row says at which commit each job was run."""

    path = RESULTS / "zoo.json"

    def __init__(self, resume: bool, write: bool) -> None:
        self.write = write
        rows = json.loads(self.path.read_text())["rows"] if self.path.exists() and resume else []
        self.rows = {f"{row['source']}/{row['name']}": row for row in rows if "done" in row}

    def has(self, name: str, job: str) -> bool:
        return job in self.rows.get(name, {}).get("done", {})

    def add(self, name: str, job: str, found: dict[str, Any]) -> None:
        source, _, short = name.partition("/")
        row = self.rows.get(name, {"name": short, "source": source, "done": {}})
        self.rows[name] = {**row, **rounded(without_places(found)), "done": {**row["done"], job: commit()}}
        if self.write:
            self.save()

    def in_order(self) -> list[dict[str, Any]]:
        return [self.rows[name] for name in ZOO if name in self.rows]

    def save(self) -> None:
        packages = ("torchvision", "timm", "transformers", "ultralytics", "diffusers", "peft")
        command = shlex.join(["python", "benchmarks/zoo.py", *sys.argv[1:]])
        rows = self.in_order()
        record = {"summary": rounded(summarise(rows)), "rows": rows, "command": command}
        record |= origin(*packages, "torch-pruning", "torch-kirigami", folders=[str(FOLDER)])
        commits = Counter(each for row in rows for each in row["done"].values())
        record["commit"] = commits.most_common(1)[0][0]
        if len(commits) > 1:
            record["note"] = f"Recorded in several runs, at {len(commits)} commits; each row names its own in the file."
        _write(self.path, record)
        _write(RESULTS / "refusals.json", sorted_refusals(rows))


def _write(path: Path, value: object) -> None:
    """A file is there whole, also when this is interrupted."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    partial.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*"], metavar="PATTERN", help="names such as 'timm/*'")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS, help="default: all")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/zoo.json")
    parser.add_argument("--resume", action="store_true", help="leave out what is recorded, and add to it")
    parser.add_argument(
        "--limit", type=int, default=60, metavar="SECONDS", help="of a processor, for each job; default 60"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of timing; default 3")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--refusals", action="store_true", help="only write docs/refusals.md, from what is recorded")
    args = parser.parse_args()
    args.names = [n for n in ZOO if any(fnmatch.fnmatch(n, p) or fnmatch.fnmatch(n, f"*/{p}") for p in args.models)]
    if not args.names:
        parser.error(f"no model is called {', '.join(args.models)}")
    if args.list or args.refusals:
        return args
    needed = {ZOO[name].source for name in args.names} | {LIBRARIES[job] for job in args.jobs if job in LIBRARIES}
    lacking = missing(*sorted(needed))
    if lacking:
        parser.error(f"not installed: {', '.join(lacking)}; make zoo installs what the zoo needs")
    return args


def main() -> None:
    args = arguments()
    if args.list:
        return print("\n".join(args.names))
    if args.refusals:
        refusals = json.loads((RESULTS / "refusals.json").read_text())
        (Path(__file__).parents[1] / "docs" / "refusals.md").write_text(page(refusals))
        return
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    CONTEXT.set_forkserver_preload(["torch", "zerogate", "zoo_models.loaded"])
    record = Record(args.resume, args.record)
    for job in args.jobs:
        for name in args.names:
            if args.resume and record.has(name, job):
                continue
            start = time.perf_counter()
            found = run(job, name, args.limit, args.rounds)
            record.add(name, job, found)
            print(
                f"{job} {name}: {verdict(job, found)} ({time.perf_counter() - start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    rows = record.in_order()
    print(f"{table(rows)}\n\n{shown(summarise(rows))}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
