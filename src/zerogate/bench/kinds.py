"""How a run of each kind is carried out: from a job to its figures and its curve."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from zerogate.bench import latency, networks, torch_pruning
from zerogate.bench.jobs import PATHS, compose
from zerogate.bench.records import curve_of
from zerogate.bench.table import Plain
from zerogate.cost import stopwatch
from zerogate.training.build import load_data
from zerogate.training.config.compose import leaves, load
from zerogate.training.costs import dense_cost
from zerogate.training.run_folder import RunFolder
from zerogate.training.ticket_search import search
from zerogate.training.train import train

Numbers = dict[str, Any]
"""Figures by name: numbers, widths by layer, lists of numbers."""


@dataclass(frozen=True)
class Work:
    """What a process is to do."""

    kind: str  # of the row
    seed: int
    overrides: tuple[str, ...]  # of the configuration, folders and figures of other runs filled in
    options: Plain  # of the kind itself
    extra: tuple[str, ...]  # overrides that do not decide the result: where the data are
    folder: Path  # where it may write
    total_epochs: int  # its own and those of the run that it starts from


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    figures: Numbers
    curve: list[str]
    config: dict[str, object]


def carry_out(work: Work) -> Outcome:
    """Does the work, or goes on with it where it stopped.

    Raises:
        StoppedError: a signal asked it to stop; what was done is kept.
        ZerogateError: it cannot be done.
    """
    return _KINDS[work.kind](work)


def _configured(folder: Path, overrides: Sequence[str], extra: Sequence[str], kind: str = "train") -> DictConfig:
    """The configuration of a run that begins, or goes on where one in that folder stopped."""
    extra = [*extra, "trainer.progress=plain"]
    if not RunFolder(folder).config.is_file():
        return compose(kind, [*overrides, *extra, f"output={folder}"])
    return compose(kind, [f"resume={folder}", *extra])


def _train(work: Work) -> Outcome:
    result = train(_configured(work.folder, [*work.overrides, f"seed={work.seed}"], work.extra))
    run = RunFolder(work.folder)
    return Outcome(_figures(work, run, result), _curve(run), _config(run))


def _tickets(work: Work) -> Outcome:
    config = _configured(work.folder, [*work.overrides, f"seed={work.seed}"], work.extra, "tickets")
    result = search(config)
    run = RunFolder(work.folder)
    names = ("remaining", "gated_weights", "remaining_weights", "history", "epochs", "file_bytes", "dense_bytes")
    figures = _of_result(result) | {key: result[key] for key in names if key in result}
    figures["total_epochs"] = result.get("epochs", work.total_epochs)
    return Outcome(figures, _curve(RunFolder(run.folder / "ticket")), _config(run))


def _torch_pruning(work: Work) -> Outcome:
    """Sparse learning for `learn` epochs where the options say so, then pruning, then training as any other run."""
    options, source = work.options, str(work.options["source"])
    own = [*work.overrides, f"+model.network={options['network']}", f"seed={work.seed}"]
    if options.get("learn"):
        learned = work.folder / "learned"
        first = [*own, "model._target_=zerogate.bench.learner", f"init_from={source}"]
        first.append(f"trainer.max_epochs={options['learn']}")
        with torch_pruning.sparse_learning(float(options["strength"])):
            train(_configured(learned, first, work.extra))
        source = str(learned)
    own += ["model._target_=zerogate.bench.pruned_network", f"+model.source={source}"]
    own += [f"+model.{key}={options[key]}" for key in ("params", "macs") if key in options]
    result = train(_configured(work.folder, own, work.extra))
    run = RunFolder(work.folder)
    return Outcome(_figures(work, run, result), _curve(run), _config(run))


def _latency(work: Work) -> Outcome:
    return Outcome(latency.figures(work.seed, **work.options), [], {})


_KINDS: dict[str, Callable[[Work], Outcome]] = {
    "train": _train,
    "tickets": _tickets,
    "torch_pruning": _torch_pruning,
    "latency": _latency,
}


def _of_result(result: Plain) -> Numbers:
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


def _figures(work: Work, run: RunFolder, result: Plain) -> Numbers:
    """The figures of a trained network: those of result.json, its widths, and its latency beside
    the dense network's."""
    config = load(run.config)
    images = load_data(config)
    small = networks.network_of(run, images)
    torch.manual_seed(0)
    dense = networks.dense_network(config, images.num_classes, images.shape).eval()
    figures = _of_result(result) | {"total_epochs": work.total_epochs}
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
    ratios = {}
    for batch in (1, 64):
        x = torch.randn(batch, *shape, device=device).contiguous(memory_format=layout)
        ratios[f"latency_b{batch}"] = stopwatch.latency_ratio(small, dense, x, rounds=20)
    return ratios


def _curve(run: RunFolder) -> list[str]:
    """metrics.csv in six digits; nothing where there is none."""
    if not run.metrics.is_file():
        return []
    with open(run.metrics, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return curve_of(reader.fieldnames or [], rows)


def _config(run: RunFolder) -> dict[str, object]:
    """Every value of the configuration that means something on other machines, too."""
    return {key: value for key, value in leaves(load(run.config)).items() if key not in PATHS}
