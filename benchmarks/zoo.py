"""Gates on every architecture of the zoo: how long it takes to attach them, how much they reach, and whether removal is
exact; beside Torch-Pruning's dependency graph on the same models.

    make zoo                                    # all of it, printed
    OMP_NUM_THREADS=1 python benchmarks/zoo.py --record
    OMP_NUM_THREADS=1 python benchmarks/zoo.py --models 'torchvision/*' '*vit*' --no-torch-pruning

Each model runs in fresh processes with a limit of time, so that one that hangs or crashes becomes a row with the reason.
Prints a Markdown table; --record also writes benchmarks/results/zoo.json.

Columns. *seconds*: `zg.sparsify`, and `DependencyGraph().build_dependency` in turns with it (A B A B, medians). *share*:
parameters in tensors with an axis that holds a removable unit, of a group of at least two, over all parameters of the
model; *of weights*: the same over the weights of convolutions and linear layers. *fp64 error*: largest difference of the
compacted and the gated model after closing 30 % and 80 % of all units at random, relative to the largest output, in
float64, the worst over both closings and inputs of two shapes. *TP share*: all parameters of the modules and free
parameters in any group that `get_all_groups` lists with its defaults; whether removing the group works is not tried.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import multiprocessing
import os
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zerogate as zg
from exactness import close, double, expose, largest_difference
from reach import share, touched
from zerogate.training.provenance import origin
from zoo_models import ZOO, Entry
from zoo_models.entry import add_to_path, library, missing
from zoo_table import rounded, shown, summarise, table, verdict, without_places

BATCH = 2
CLOSED = (0.3, 0.8)
Emit = Callable[..., None]
CONTEXT = multiprocessing.get_context("forkserver")


def make(entry: Entry) -> nn.Module:
    torch.manual_seed(0)
    return entry.make()


def sparsify(model: nn.Module, inputs: Any) -> zg.Sparsified:
    try:
        return zg.sparsify(model, inputs, unit={"channel", "head"})  # type: ignore[arg-type]
    except zg.ZerogateError as error:
        if not str(error).startswith("unit is"):
            raise
        return zg.sparsify(model, inputs, unit="channel")


# exactness


def errors(entry: Entry, batch: int = BATCH) -> dict[str, float]:
    """The difference after each random closing, for each variant of the inputs."""
    generator = torch.Generator().manual_seed(1)
    variants = [double(entry.inputs(batch, v)) for v in (0, 1)]
    model = make(entry).double()
    expose(model, variants[0], generator)
    sparse = sparsify(model, variants[0])
    found = {}
    for closed in CLOSED:
        close(sparse, closed, generator)
        small = sparse.compact().eval()
        for variant, inputs in enumerate(variants):
            found[f"{closed:.0%} closed, inputs {variant}"] = largest_difference(model.eval(), small, inputs)
    return found


# what the processes do


def measure(entry: Entry, emit: Emit) -> None:
    """Groups, shares, refusals and exactness."""
    model, inputs = make(entry), entry.inputs(BATCH, 0)
    emit(params=sum(p.numel() for p in model.parameters()))
    start = time.perf_counter()
    with reported(emit, "failure"):
        sparse = sparsify(model, inputs)
        emit(first_seconds=time.perf_counter() - start)
        emit(groups=len(sparse.groups), units=len(sparse.logits), unit=str(sparse.unit))
        emit(heads=sum(g.units for g in sparse.groups if g.kind == "head"))
        emit(**share(model, touched(sparse)))
        reasons = Counter(row.reason for row in sparse.report().rows if row.status == "refused")
        emit(refused=dict(reasons.most_common()))
        del sparse, model
        with reported(emit, "inexact"):
            found = errors(entry)
            emit(errors=found, error=max(found.values(), key=lambda e: math.inf if math.isnan(e) else e))


def race(entry: Entry, emit: Emit, rounds: int, torch_pruning: bool) -> None:
    """Seconds to attach gates and to build Torch-Pruning's graph, in turns; then the latter's groups."""
    inputs = entry.inputs(BATCH, 0)
    graph, model = None, make(entry)
    ours = theirs = True
    for _ in range(rounds):
        if ours:
            with reported(emit, "race_failure") as ours:
                fresh = make(entry)
                start = time.perf_counter()
                sparsify(fresh, inputs)
                emit(seconds=[time.perf_counter() - start])
                del fresh
        if theirs and torch_pruning:
            tp = library("torch_pruning")
            with reported(emit, "tp_failure") as theirs:
                graph, model = None, make(entry)
                given = inputs if isinstance(inputs, dict | tuple) else (inputs,)
                start = time.perf_counter()
                graph = tp.DependencyGraph().build_dependency(model, given)
                emit(tp_seconds=[time.perf_counter() - start])
    if graph is not None and theirs:
        with reported(emit, "tp_failure"):
            start = time.perf_counter()
            held: set[int] = set()
            count = 0
            for group in graph.get_all_groups():
                count += 1
                channels = 0
                ids: set[int] = set()
                for dependency, indices in group:
                    target = dependency.target.module
                    if isinstance(target, nn.Parameter):
                        ids.add(id(target))
                    else:
                        ids.update(map(id, target.parameters()))
                    channels = max(channels, len(indices))
                if channels > 1:
                    held |= ids
            parts = share(model, {name for name, p in model.named_parameters() if id(p) in held})
            emit(tp_groups=count, tp_groups_seconds=time.perf_counter() - start)
            emit(**{f"tp_{key}": value for key, value in parts.items()})


class Outcome:
    """True unless the block ended in an exception."""

    def __init__(self) -> None:
        self.ok = True

    def __bool__(self) -> bool:
        return self.ok


@contextmanager
def reported(emit: Emit, key: str) -> Iterator[Any]:
    """Emits the first line and the place of an exception instead of raising it."""
    outcome = Outcome()
    try:
        yield outcome
    except Exception as error:
        outcome.ok = False
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(f.filename).parent.name}/{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:]]
        emit(**{key: f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", f"{key}_at": where})


def child(job: str, name: str, folder: Path, rounds: int) -> None:
    """One job on one model; results go to a file as they come, one JSON object a line."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with open(folder / "row", "a") as file:

        def emit(**values: Any) -> None:
            print(json.dumps(values), file=file, flush=True)

        if job == "measure":
            with reported(emit, "failure"):
                measure(ZOO[name], emit)
        else:
            with reported(emit, "race_failure"):
                race(ZOO[name], emit, rounds, torch_pruning=job == "race")


def run(job: str, name: str, limit: float, rounds: int) -> dict[str, Any]:
    """Runs a job in a process of its own and merges what it wrote, also if it did not reach the end.

    Not a task of `zerogate.sweeps`: its processes have imported Lightning, which would be measured too, and here what the
    second job of a model is depends on what the first has found.
    """
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "row").touch()
        process = CONTEXT.Process(target=child, args=(job, name, folder, rounds))
        process.start()
        process.join(limit)
        row: dict[str, Any] = {}
        if process.is_alive():
            process.kill()
            process.join()
            row[f"{job}_ended"] = f"not done in {limit:.0f} s"
        elif process.exitcode:
            last = ((folder / "log").read_text(errors="replace").strip().splitlines() or [""])[-1]
            row[f"{job}_ended"] = f"ended with {process.exitcode}: {last[:200]}"
        for line in (folder / "row").read_text().splitlines():
            for key, value in json.loads(line).items():
                row[key] = [*row.get(key, []), *value] if key in ("seconds", "tp_seconds") else value
    return row


def examine(name: str, args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    row: dict[str, Any] = {"name": name.partition("/")[2], "source": name.partition("/")[0]}
    row |= run("measure", name, args.limit, args.rounds)
    if "failure" not in row and "first_seconds" in row:
        row |= run("time" if args.no_torch_pruning else "race", name, args.limit, args.rounds) if args.rounds else {}
    elif not args.no_torch_pruning:
        row |= run("race", name, args.limit, 1)
    for key in ("seconds", "tp_seconds"):
        if key in row:
            row[f"{key}_n"], row[key] = len(row[key]), statistics.median(row[key])
    if "seconds" not in row and "first_seconds" in row:
        row |= {"seconds": row["first_seconds"], "seconds_n": 1}
    print(f"{name}: {verdict(row)} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    if args.rows:
        with open(args.rows, "a") as file:
            print(json.dumps(row), file=file)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*"], metavar="PATTERN", help="names such as 'timm/*'")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/zoo.json")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="for each process; default 300")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0: only the first attaching counts")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time; timing wants 1, the default")
    parser.add_argument("--no-torch-pruning", action="store_true")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="also append each model's row to this file, as JSON")
    parser.add_argument("--list", action="store_true", help="only print the names")
    args = parser.parse_args()
    names = [n for n in ZOO if any(fnmatch.fnmatch(n, p) or fnmatch.fnmatch(n, f"*/{p}") for p in args.models)]
    if not names:
        parser.error(f"no model is called {', '.join(args.models)}")
    if args.list:
        return print("\n".join(names))
    lacking = missing("torchvision", "timm", "transformers", *([] if args.no_torch_pruning else ["torch_pruning"]))
    if lacking:
        parser.error(f"not installed: {', '.join(lacking)}; make .venv/.zoo installs what the zoo needs")
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    CONTEXT.set_forkserver_preload(["torch", "zerogate", "zoo_models.loaded"])
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda name: examine(name, args), names))
    summary = summarise(rows)
    print(f"{table(rows)}\n\n{shown(summary)}")
    if args.record:
        given = [a for a, before in zip(sys.argv[1:], sys.argv, strict=False) if "--rows" not in (a, before)]
        command = shlex.join(["python", "benchmarks/zoo.py", *given])
        add_to_path()
        packages = ("torchvision", "timm", "transformers", "torch-pruning")
        record = {"summary": summary, "rows": [without_places(r) for r in rows], "command": command}
        record |= {"threads": torch.get_num_threads(), **origin(*packages)}
        path = Path(__file__).parent / "results" / "zoo.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rounded(record), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
