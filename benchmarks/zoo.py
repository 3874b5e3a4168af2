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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zerogate as zg
from zerogate.training.provenance import origin
from zoo_models import ZOO, Entry
from zoo_models.entry import add_to_path, library, missing

BATCH = 2
CLOSED = (0.3, 0.8)
TARGET = 1e-10
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


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def double(x: Any) -> Any:
    """Inputs with their floating tensors in float64."""
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, dict):
        return {key: double(value) for key, value in x.items()}
    return type(x)(map(double, x)) if isinstance(x, (tuple, list)) else x


def leaves(inputs: Any) -> list[Tensor]:
    """The tensors of a model's inputs."""
    parts = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else [inputs]
    return [x for x in parts if isinstance(x, Tensor)]


def floating_tensors(x: Any, _seen: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """Floating tensors of an output, however nested; not those of a cache, whose sizes are the layers' own."""
    if isinstance(x, Tensor):
        if x.is_floating_point() or x.is_complex():
            yield x
    elif id(x) in _seen or "Cache" in type(x).__name__:
        return
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from floating_tensors(value, _seen | {id(x)})
    elif isinstance(x, (list, tuple, set)):
        for value in x:
            yield from floating_tensors(value, _seen | {id(x)})
    elif hasattr(x, "__dict__") and not isinstance(x, (type, nn.Module)):
        yield from floating_tensors(vars(x), _seen | {id(x)})


# exactness


def expose(model: nn.Module, inputs: Any, generator: torch.Generator) -> None:
    """Gives a fresh model values that hide nothing: biases, scales and what starts at zero become random, and BatchNorm
    statistics are those of a random batch, disturbed, so that signals reach the output at a usual size."""

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like) * (high - low) + low

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like) * std

    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            if name.endswith("bias"):
                p.add_(normal(p, 0.1))
            elif p.ndim == 1:
                p.copy_(uniform(p, 0.5, 1.5))
            elif not p.count_nonzero():
                p.copy_(normal(p, 0.1) if p.ndim else uniform(p, 0.5, 1.5))
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        momenta = [m.momentum for m in norms]
        model.eval()
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        call(model, inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.momentum = momentum
            norm.eval()
            norm.running_mean.add_(norm.running_var.sqrt() * normal(norm.running_mean, 0.1))
            norm.running_var.mul_(uniform(norm.running_var, 0.5, 1.5)).add_(1e-3)


def close(sparse: zg.Sparsified, share: float, generator: torch.Generator) -> None:
    """Closes a random share of all units and opens the others, with certainty."""
    with torch.no_grad():
        closed = torch.rand(len(sparse.logits), generator=generator) < share
        sparse.logits.copy_(torch.where(closed, -8.0, 8.0))


class Float64(TorchFunctionMode):
    """Keeps a float64 model in float64: several norms and softmaxes go through float32 whatever they are given, and
    round what differs in the last bit to what differs in the eighth digit, or to nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = [torch.float64 if x is torch.float32 else x for x in args]
        return func(*args, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})


def largest_difference(gated: nn.Module, small: nn.Module, inputs: Any) -> float:
    """max |gated − small| / max |gated| over all floating tensors of the outputs; inf where shapes differ."""
    with torch.no_grad(), Float64():
        torch.manual_seed(0)
        a = list(floating_tensors(call(gated, inputs)))
        torch.manual_seed(0)
        b = list(floating_tensors(call(small, inputs)))
    if [x.shape for x in a] != [x.shape for x in b]:
        return math.inf
    if not all(x.isfinite().all() for x in a):
        return math.nan
    largest = max((x.abs().max().item() for x in a if x.numel()), default=0.0)
    apart = max(((x - y).abs().max().item() for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)
    return apart / (largest or 1.0)


def errors(entry: Entry, batch: int = BATCH) -> dict[str, float]:
    """The difference after each random closing, for each variant of the inputs."""
    generator = torch.Generator().manual_seed(1)
    variants = [double(entry.inputs(batch, v)) for v in (0, 1)]
    model = make(entry).double()
    expose(model, variants[0], generator)
    sparse = sparsify(model, variants[0])
    found = {}
    for share in CLOSED:
        close(sparse, share, generator)
        small = sparse.compact().eval()
        for variant, inputs in enumerate(variants):
            found[f"{share:.0%} closed, inputs {variant}"] = largest_difference(model.eval(), small, inputs)
    return found


# shares


def layer_weights(model: nn.Module) -> set[str]:
    """Names of the weights of convolutions and linear layers, however the libraries call these."""
    names = set()
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        own = [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or kind in ("Conv1D", "CondConv2d", "StdConv2d"):
            names.update(f"{prefix}.{n}" if prefix else n for n in own)
        elif isinstance(module, nn.MultiheadAttention):
            names.update(f"{prefix}.{n}" if prefix else n for n in own if n.endswith("proj_weight"))
    return names & set(dict(model.named_parameters()))  # tied ones once


def share(model: nn.Module, touched: set[str]) -> dict[str, float]:
    """Parts of all parameters, and of convolutions' and linear layers' weights, that lie in the named ones."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    weights = layer_weights(model)
    return {
        "share": sum(sizes[n] for n in sizes if n in touched) / max(sum(sizes.values()), 1),
        "weight_share": sum(sizes[n] for n in weights if n in touched) / max(sum(sizes[n] for n in weights), 1),
    }


def touched(sparse: zg.Sparsified) -> set[str]:
    """Tensors with an axis that holds a removable unit of a group of at least two."""
    of_use = torch.zeros(sparse.structure.units + 1, dtype=torch.bool)  # the last is for −1
    for group in sparse.structure.groups:
        of_use[group.slice] = group.units > 1
    return {tensor for (tensor, _), units in sparse.structure.axes.items() if of_use[units].any()}


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
    """Runs a job in a process of its own and merges what it wrote, also if it did not reach the end."""
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


# the table


def verdict(row: dict[str, Any]) -> str:
    """The fp64 error, or why there is none."""
    if "error" in row:
        return f"{row['error']:.1e}"
    return str(row.get("failure") or row.get("inexact") or row.get("measure_ended") or "nothing came back")


def cells(row: dict[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    refused = sorted(row.get("refused", {}).items(), key=lambda item: -item[1])
    why = "; ".join(f"{count}× {reason[:90]}" for reason, count in refused[:2]) + ("; …" if len(refused) > 2 else "")
    tp = row.get("tp_failure") or row.get("race_ended") or row.get("race_failure") or ""
    return [
        row["name"],
        row["source"],
        number("seconds", ".2f"),
        f"{row['groups']} ({row['units']})" if "groups" in row else "",
        number("share", ".1%"),
        number("weight_share", ".1%"),
        why,
        verdict(row)[:160],
        number("tp_seconds", ".2f"),
        number("tp_share", ".1%") or tp[:100],
    ]


HEAD = (
    "model",
    "source",
    "seconds",
    "groups (units)",
    "share",
    "of weights",
    "refused and why",
    "fp64 error",
    "TP seconds",
    "TP share",
)


def table(rows: list[dict[str, Any]]) -> str:
    body = [" | ".join(cell.replace("|", "/") for cell in cells(row)) for row in rows]
    return "\n".join([f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(f"| {line} |" for line in body)])


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all rows; ``ratio`` is Torch-Pruning's seconds over ours, where both have any."""
    ratios = [r["tp_seconds"] / r["seconds"] for r in rows if "tp_seconds" in r and "seconds" in r]
    seconds = {f"{r['source']}/{r['name']}": r["seconds"] for r in rows if "seconds" in r}
    slowest = max(seconds, key=lambda name: seconds[name], default=None)
    compared = [r for r in rows if "tp_share" in r]
    shares = [r["weight_share"] for r in rows if "weight_share" in r]
    return {
        "models": len(rows),
        "gated": sum("groups" in r for r in rows),
        "exact": sum(r.get("error", math.inf) <= TARGET for r in rows),
        "median_weight_share": statistics.median(shares) if shares else None,
        "weight_share_at_least_90_percent": sum(s >= 0.9 for s in shares),
        "median_seconds": statistics.median(seconds.values()) if seconds else None,
        "max_seconds": seconds.get(slowest) if slowest else None,
        "slowest": slowest,
        "torch_pruning_enumerates": len(compared),
        "share_below_torch_pruning": sum(r.get("share", 0.0) < r["tp_share"] - 5e-4 for r in compared),
        "median_ratio_of_seconds": statistics.median(ratios) if ratios else None,
    }


def shown(summary: dict[str, Any]) -> str:
    return "\n".join(
        f"* {key.replace('_', ' ')}: {format(value, '.3g') if isinstance(value, float) else value}"
        for key, value in summary.items()
    )


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
        record = {"summary": summary, "rows": [_public(r) for r in rows], "command": command}
        record |= {"threads": torch.get_num_threads(), **origin(*packages)}
        path = Path(__file__).parent / "results" / "zoo.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(_rounded(record), indent=1, ensure_ascii=False) + "\n")


def _public(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("_at")}


def _rounded(x: Any) -> Any:
    """Floats with three digits; JSON has no infinities."""
    if isinstance(x, float):
        return float(f"{x:.3g}") if math.isfinite(x) else str(x)
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    return [_rounded(value) for value in x] if isinstance(x, list) else x


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
