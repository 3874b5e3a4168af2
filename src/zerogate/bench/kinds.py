"""How a run of each kind is carried out: from a job to its figures and its curve."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zerogate.bench import latency, networks
from zerogate.bench import table as definitions
from zerogate.bench import torch_pruning as pruned
from zerogate.bench.records import curve_of
from zerogate.cost import stopwatch as timing
from zerogate.training import build as building
from zerogate.training import ticket_search as searches
from zerogate.training import train as runs
from zerogate.training.config import compose as settings
from zerogate.training.costs import dense_cost
from zerogate.training.run_folder import Run


@dataclass(frozen=True)
class Task:
    """What a worker is given: a row's kind, overrides and options filled in, and where it may write.

    `extra` are overrides that do not decide the result: where data lie.
    """

    kind: str
    seed: int
    overrides: tuple[str, ...]
    options: Mapping[str, Any]
    extra: tuple[str, ...]
    folder: Path
    total_epochs: int


@dataclass(frozen=True)
class Done:
    """What came of it."""

    figures: dict[str, Any]
    curve: list[str]
    config: dict[str, Any]


def carry_out(task: Task) -> Done:
    """Do a task, or go on with it where it stopped.

    Raises:
        StoppedError: a signal asked it to stop; what was done is kept.
        ZerogateError: it cannot be done.
    """
    return _KINDS[task.kind](task)


def _configured(folder: Path, overrides: Sequence[str], extra: Sequence[str], kind: str = "train") -> Any:
    """The configuration of a run that begins, or goes on where one in that folder stopped."""
    extra = [*extra, "trainer.progress=plain"]
    if not Run(folder).config.is_file():
        return definitions.compose(kind, [*overrides, *extra, f"output={folder}"])
    return definitions.compose(kind, [f"resume={folder}", *extra])


def _train(task: Task) -> Done:
    result = runs.train(_configured(task.folder, [*task.overrides, f"seed={task.seed}"], task.extra))
    run = Run(task.folder)
    return Done(_figures(task, run, result), _curve(run), _config(run))


def _tickets(task: Task) -> Done:
    config = _configured(task.folder, [*task.overrides, f"seed={task.seed}"], task.extra, "tickets")
    result = searches.search(config)
    run = Run(task.folder)
    kept = ("remaining", "gated_weights", "remaining_weights", "history", "epochs", "file_bytes", "dense_bytes")
    figures = _of_result(result) | {key: result[key] for key in kept if key in result}
    figures["total_epochs"] = result.get("epochs", task.total_epochs)
    return Done(figures, _curve(Run(run.folder / "ticket")), _config(run))


def _torch_pruning(task: Task) -> Done:
    """Sparse learning for `learn` epochs where the options say so, then pruning, then training as any other run."""
    options, source = task.options, str(task.options["source"])
    own = [*task.overrides, f"+model.network={options['network']}", f"seed={task.seed}"]
    if options.get("learn"):
        learned = task.folder / "learned"
        first = [*own, "model._target_=zerogate.bench.learner", f"init_from={source}"]
        first.append(f"trainer.max_epochs={options['learn']}")
        with pruned.sparse_learning(float(options["strength"])):
            runs.train(_configured(learned, first, task.extra))
        source = str(learned)
    own += ["model._target_=zerogate.bench.pruned_network", f"+model.source={source}"]
    own += [f"+model.{key}={options[key]}" for key in ("params", "macs") if key in options]
    result = runs.train(_configured(task.folder, own, task.extra))
    run = Run(task.folder)
    return Done(_figures(task, run, result), _curve(run), _config(run))


def _latency(task: Task) -> Done:
    return Done(latency.figures(task.seed, **task.options), [], {})


_KINDS: dict[str, Callable[[Task], Done]] = {
    "train": _train,
    "tickets": _tickets,
    "torch_pruning": _torch_pruning,
    "latency": _latency,
}


def _of_result(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("val_accuracy", "test_accuracy", "params", "macs", "dense_params", "dense_macs", "density_params",
            "density_macs", "compaction_error", "images_per_second", "steps")  # fmt: skip
    figures = {key: result[key] for key in keys if result.get(key) is not None}
    if result.get("target"):
        figures |= {f"target_{key}": result["target"][key] for key in ("share", "reached", "projected")}
    if result.get("best"):
        figures |= {f"best_{key}": result["best"][key] for key in ("val_accuracy", "test_accuracy", "epoch")}
    if result.get("groups"):
        figures["kept"] = {group["name"]: [group["kept"], group["units"]] for group in result["groups"]}
    return figures


def _figures(task: Task, run: Run, result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a trained network: what result.json says, its widths, the dense network's, and its latency beside that one's."""
    config = settings.load(run.config)
    images = building.load_data(config)
    small = networks.network_of(run, images)
    torch.manual_seed(0)
    dense = networks.dense_network(config, images.num_classes, images.shape).eval()
    figures = _of_result(result) | {"total_epochs": task.total_epochs}
    cost = dense_cost(dense, torch.zeros(2, *images.shape))
    figures |= {f"dense_{key}": value for key, value in cost.items()}
    figures |= {f"density_{key}": figures[key] / value for key, value in cost.items() if value and key in figures}
    figures |= {"widths": networks.widths(small), "dense_widths": networks.widths(dense)}
    return figures | _latencies(small, dense, images.shape, config.channels_last)


def _latencies(small: nn.Module, dense: nn.Module, shape: Sequence[int], channels_last: bool) -> dict[str, float]:
    """Time of a network beside the dense one, both in the memory format of training: files keep it, new ones lack it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network in (small, dense):
        network.to(device=device, memory_format=layout)  # type: ignore[call-overload]  # the stubs forget it
    found = {}
    for batch in (1, 64):
        x = torch.randn(batch, *shape, device=device).contiguous(memory_format=layout)
        found[f"latency_b{batch}"] = timing.latency_ratio(small, dense, x, rounds=20)
    return found


def _curve(run: Run) -> list[str]:
    if not run.metrics.is_file():
        return []
    with open(run.metrics, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return curve_of(reader.fieldnames or [], rows)


def _config(run: Run) -> dict[str, Any]:
    leaves = settings.leaves(settings.load(run.config))
    return {key: value for key, value in leaves.items() if key not in definitions.PATHS}
