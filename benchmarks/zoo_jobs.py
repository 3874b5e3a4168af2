"""What is done with each architecture of the zoo: gates, exactness, cost and time. A job emits what it finds as it goes."""

from __future__ import annotations

import gc
import math
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zerogate as zg
from exactness import (
    close,
    double,
    expose,
    largest_difference,
    precision,
    random_in_training,
    without_dropout,
)
from reach import share, touched
from witness import agreement, macs_by_op
from zoo_models.entry import Entry, library
from zoo_rivals import Kirigami, Rival, TorchPruning, try_pruning

BATCH = 2
CLOSED = (0.3, 0.8)
BOTH: Any = {"channel", "head"}
LONG = 5.0
"""Seconds after which a timing is not repeated."""
Emit = Callable[..., None]


def make(entry: Entry) -> nn.Module:
    torch.manual_seed(0)
    return entry.make()


def sparsify(model: nn.Module, inputs: Any) -> zg.Sparsified:
    return zg.sparsify(model, inputs, unit=BOTH)


# exactness


def _prepared(entry: Entry, batch: int) -> tuple[nn.Module, list[Any], torch.Generator]:
    """A model that hides nothing, and inputs of two shapes, all in float64; in float32 where kernels know nothing else."""
    generator = torch.Generator().manual_seed(1)
    model, variants = make(entry).double(), [double(entry.inputs(batch, v)) for v in (0, 1)]
    try:
        expose(model, variants[0], generator)
    except RuntimeError:
        generator = torch.Generator().manual_seed(1)
        model, variants = make(entry), [entry.inputs(batch, v) for v in (0, 1)]
        expose(model, variants[0], generator)
    return model, variants, generator


def errors(entry: Entry, batch: int = BATCH, emit: Emit | None = None) -> dict[str, float]:
    """The difference after each random closing, for each variant of the inputs.

    ``emit`` is given what a counter of operations says of the MACs of each compacted network."""
    model, variants, generator = _prepared(entry, batch)
    if emit is not None:
        emit(precision=str(next(model.parameters()).dtype).removeprefix("torch."))
    sparse = sparsify(model, variants[0])
    found = {}
    for closed in CLOSED:
        close(sparse, closed, generator)
        small = sparse.compact().eval()
        for variant, inputs in enumerate(variants):
            found[f"{closed:.0%} closed, inputs {variant}"] = largest_difference(model.eval(), small, inputs)
        if emit is not None:
            with reported(emit, "witness_failure"), precision(small):
                emit(**{f"witness_{closed:.0%}": agreement(sparse.cost().macs, macs_by_op(small, variants[0]))})
    return found


def training_errors(entry: Entry, batch: int = BATCH) -> dict[str, float] | str:
    """The difference in training mode, with dropout of probability 0, of the gated network with its deployed mask and the
    compacted one: of their outputs, and of their outputs in evaluation mode after that, with the statistics that both have
    then. A string says why there is nothing to compare."""
    model, variants, generator = _prepared(entry, batch)
    without_dropout(model)
    why = random_in_training(model, variants[0])
    if why:
        return why
    model.train()
    sparse = sparsify(model, variants[0])
    close(sparse, CLOSED[0], generator)
    sparse.harden()
    small = sparse.compact()
    found = {}
    for variant, inputs in enumerate(variants):
        found[f"in training, inputs {variant}"] = largest_difference(model.train(), small.train(), inputs)
    for variant, inputs in enumerate(variants):
        found[f"after training, inputs {variant}"] = largest_difference(model.eval(), small.eval(), inputs)
    return found


# jobs


def measure(entry: Entry, emit: Emit) -> None:
    """Groups, shares, refusals and exactness."""
    model, inputs = make(entry), entry.inputs(BATCH, 0)
    emit(params=sum(p.numel() for p in model.parameters()))
    with reported(emit, "witness_failure"):
        counted = macs_by_op(model, inputs)
    with reported(emit, "failure"):
        start = time.process_time()
        sparse = sparsify(model, inputs)
        emit(first_seconds=time.process_time() - start)
        units = Counter({kind: 0 for kind in ("channel", "head")})
        for group in sparse.groups:
            units[group.kind] += group.units
        emit(groups=len(sparse.groups), units=len(sparse.logits), heads=units["head"], channels=units["channel"])
        emit(macs=sparse.dense_cost.macs, witness=agreement(sparse.dense_cost.macs, counted))
        emit(**share(model, touched(sparse)))
        emit(refused=dict(Counter(row.reason for row in sparse.report().rows if row.status == "refused").most_common()))
        del sparse, model
        with reported(emit, "inexact"):
            found = errors(entry, emit=emit)
            emit(errors=found, error=_worst(found))
    with reported(emit, "channels_alone_failure"):  # asking for more kinds of unit must not find fewer
        alone = zg.sparsify(make(entry), inputs, unit="channel")
        emit(channels_alone=len(alone.logits))
        del alone


def train(entry: Entry, emit: Emit) -> None:
    """Exactness in training mode."""
    with reported(emit, "inexact_in_training"):
        found = training_errors(entry)
        if isinstance(found, str):
            emit(training=found)
        else:
            emit(training_errors=found, training_error=_worst(found))


def race(entry: Entry, emit: Emit, rounds: int) -> None:
    """Seconds to attach gates and to build Torch-Pruning's graph, in turns."""
    inputs = entry.inputs(BATCH, 0)
    theirs: Rival = TorchPruning(library("torch_pruning"))
    turns: dict[str, tuple[str, Callable[[nn.Module], object]]] = {
        "seconds": ("race_failure", lambda model: sparsify(model, inputs)),
        "tp_seconds": ("tp_failure", lambda model: theirs.analyse(model, inputs)),
    }
    for _ in range(rounds):
        for key, (failure, attach) in list(turns.items()):
            with reported(emit, failure) as ok:
                model = make(entry)
                gc.collect()
                start = time.process_time()
                attach(model)
                emit(**{key: [time.process_time() - start]})
            if not ok:
                del turns[key]


def rival(entry: Entry, emit: Emit, name: str, rounds: int) -> None:
    """Another tool by its own recipe: seconds, and what it cuts, whether that runs, and whether it is exact."""
    tool: Rival = TorchPruning(library("torch_pruning")) if name == "tp" else Kirigami(library("torch_kirigami"))
    inputs = entry.inputs(BATCH, 0)
    with reported(emit, f"{name}_failure") as ok, _without_warnings():
        for _ in range(0 if name == "tp" else rounds):  # Torch-Pruning's seconds are measured in turns with ours
            model = make(entry).eval()
            start = time.process_time()
            tool.analyse(model, inputs)
            seconds = time.process_time() - start
            emit(**{f"{name}_seconds": [seconds]})
            if seconds > LONG:
                break
    if ok:
        with reported(emit, f"{name}_prunes_not"), _without_warnings():
            model, variants, _ = _prepared(entry, BATCH)
            try_pruning(tool, model, variants, lambda **found: emit(**{f"{name}_{k}": v for k, v in found.items()}))


def _worst(found: dict[str, float]) -> float:
    return max(found.values(), key=lambda e: math.inf if math.isnan(e) else e)


# reporting


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


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
