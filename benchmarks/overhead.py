"""What gates cost in a training step, beside the dense network: calls, memory, host synchronisations, seconds.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/overhead.py --rounds 15 --record

A step is zero_grad(set_to_none=True), forward, cross-entropy plus the objective, backward, the optimizer and the handle's
own step(). Calls, kept tensors and synchronisations are those of forward and backward alone; calls of step() have rows of
their own. Dense and gated run in turn (A B A B …), and seconds are medians of the ratios of neighbours, with their
quartiles. With --record the table goes to benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import zerogate as zg
from zerogate.training.provenance import origin

CALLS = "calls of ATen ops whose result is no view of an argument (OpOverload.is_view), forward and backward"
SYNCS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "equal", "tolist")
KEPT = (
    "storages that autograd keeps for the backward pass, each once, without those of parameters, which are there anyway: "
    "gated minus dense"
)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW fused": {"fused": True},
    "AdamW foreach": {"foreach": True},
}
CHANNELS: dict[str, dict[str, Any]] = {
    "hard concrete": {},
    "hard concrete, per example": {"per_example": True},
    "hard concrete, penalty over params": {"objective": ("params",)},
    "hard concrete, penalty over macs": {"objective": ("macs",)},
    "hard concrete, target in params": {"objective": {"params": 0.5}},
    "soft mask": {"gate": zg.SoftMask},
    "soft mask, target in macs": {"gate": zg.SoftMask, "objective": {"macs": 0.5}},
}
WEIGHTS: dict[str, dict[str, Any]] = {
    "soft mask, weights": {"gate": zg.SoftMask, "unit": "weight"},
    "soft mask, weights, target in params": {"gate": zg.SoftMask, "unit": "weight", "objective": {"params": 0.5}},
    "hard concrete, weights": {"unit": "weight"},
}
STEPS = 100_000  # of the run that gates and targets believe to be in
GOALS = {  # of the rows that have one
    ("aten calls", "googlenet", "hard concrete"): 1.05,
    ("aten calls", "googlenet", "soft mask"): 1.05,
    ("aten calls", "googlenet", "hard concrete, penalty over params"): 1.05,
    ("aten calls", "googlenet", "hard concrete, penalty over macs"): 1.05,
    ("aten calls", "googlenet", "hard concrete, per example"): 1.20,
    ("kept MiB", "resnet20", "soft mask, weights"): 2.0,
}
TIMES = {"googlenet": ("hard concrete", {128: 1.03, 2: 1.06}), "resnet20": ("soft mask, weights", {128: 1.03, 8: 1.06})}
CUDA_BATCHES = (128, 512)


class Calls(TorchDispatchMode):
    """Counts ATen calls that are not views, and those that wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not func.is_view
        self.syncs += func.overloadpacket.__name__ in SYNCS
        return func(*args, **(kwargs or {}))


@dataclass
class Trained:
    """A network, dense or gated, with what its steps need."""

    name: str
    options: dict[str, Any] | None
    batch: int
    device: str
    layout: str = "channels_last"
    optimizer: str | None = None
    compiled: bool = False
    parameters: list[torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        model = getattr(zg.models, self.name)().to(self.device, memory_format=layout).train()
        self.x = torch.randn(self.batch, 3, 32, 32, device=self.device).contiguous(memory_format=layout)
        self.y = torch.randint(10, (self.batch,), device=self.device)
        options = dict(self.options or {})
        if "gate" in options:
            options["gate"] = options["gate"](steps=STEPS)
        if isinstance(options.get("objective"), dict):
            options["objective"] = zg.Target(**options["objective"], steps=STEPS)
        elif "objective" in options:
            options["objective"] = zg.Penalty(1.0, *options["objective"])
        self.sparse = None if self.options is None else zg.sparsify(model, self.x[:2], **options)
        groups: Any = model.parameters() if self.sparse is None else self.sparse.param_groups(lr=1e-3)
        if self.optimizer is not None:
            self.adam = torch.optim.AdamW(groups, lr=1e-3, **OPTIMIZERS[self.optimizer])
        self.parameters = [*model.parameters()] + ([] if self.sparse is None else [*self.sparse.parameters()])
        self.model = torch.compile(model) if self.compiled else model

    def gradients(self) -> None:
        for p in self.parameters:
            p.grad = None
        loss = F.cross_entropy(self.model(self.x), self.y)
        if self.sparse is not None:
            loss = loss + self.sparse.loss()
        loss.backward()

    def step(self) -> None:
        self.gradients()
        self.adam.step()
        if self.sparse is not None:
            self.sparse.step()

    def counts(self) -> tuple[int, int]:
        """ATen calls and host synchronisations of one forward and backward."""
        self.gradients()
        with Calls() as counted:
            self.gradients()
        if self.device != "cuda":
            return counted.calls, counted.syncs
        return counted.calls, counted.syncs + self._waits()

    def _waits(self) -> int:
        """What CUDA itself counts as waiting."""
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.gradients()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in caught)

    def after(self) -> int:
        """ATen calls of the handle's own step."""
        with Calls() as counted:
            if self.sparse is not None:
                self.sparse.step()
        return counted.calls

    def kept(self) -> float:
        """MiB that autograd keeps."""
        own, found = {p.untyped_storage().data_ptr() for p in self.parameters}, {}

        def pack(x: torch.Tensor) -> None:  # the tensor itself would be held by the node that holds it
            storage = x.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage  # held: an address is not used twice

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):  # no backward pass follows
            loss = F.cross_entropy(self.model(self.x), self.y)
            if self.sparse is not None:
                loss = loss + self.sparse.loss()
        return sum(s.nbytes() for s in found.values()) / 2**20


def counted(device: str, batch: int) -> list[dict[str, Any]]:
    """The rows that are the same every time."""
    rows = []
    variants: dict[str, dict[str, Any]] = {**CHANNELS, **WEIGHTS}
    for name, layout in itertools.product(("googlenet", "resnet20"), ("channels_last", "contiguous")):
        dense = Trained(name, None, batch, device, layout)
        calls, syncs = dense.counts()
        kept = dense.kept()
        for gates, options in variants.items():
            if layout == "contiguous" and "per_example" not in options:
                continue  # the same as in channels_last
            gated = Trained(name, options, batch, device, layout)
            now, waits = gated.counts()
            row = {"network": name, "gates": gates, "layout": layout, "optimizer": "none", "batch": batch}
            held, later = gated.kept(), gated.after()
            rows += [
                {"measure": "aten calls", **row, "dense": calls, "gated": now, "ratio": round(now / calls, 3)},
                {"measure": "aten calls of step()", **row, "dense": 0, "gated": later, "more": later},
                {
                    "measure": "kept MiB",
                    **row,
                    "dense": round(kept, 2),
                    "gated": round(held, 2),
                    "more": round(held - kept, 3),
                },
                {"measure": "host synchronisations", **row, "dense": syncs, "gated": waits, "more": waits - syncs},
            ]
    for row in rows:
        row["goal"] = (
            0
            if row["measure"] == "host synchronisations"
            else GOALS.get((row["measure"], row["network"], row["gates"]))
        )
    return rows


def ratio_of(pair: list[Trained], rounds: int) -> dict[str, float]:
    """Seconds of two kinds of steps in turn; each round begins with the other one."""

    def seconds(step: Callable[[], None]) -> float:
        start = time.perf_counter()
        step()
        if pair[0].device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for trained in pair * 2:
        seconds(trained.step)
    taken: list[tuple[float, float]] = []
    for i in range(rounds):
        first = seconds(pair[i % 2].step)
        second = seconds(pair[1 - i % 2].step)
        taken.append((first, second) if i % 2 == 0 else (second, first))
    ratios = [b / a for a, b in taken]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "dense": round(statistics.median(a for a, _ in taken), 5),
        "gated": round(statistics.median(b for _, b in taken), 5),
        "ratio": round(middle, 3),
        "lower quartile": round(low, 3),
        "upper quartile": round(high, 3),
        "n": rounds,
    }


def timed(device: str, rounds: int, optimizer: str) -> list[dict[str, Any]]:
    rows = []
    for name, (gates, goals) in TIMES.items():
        options = {**CHANNELS, **WEIGHTS}[gates]
        for batch in goals if device == "cpu" else CUDA_BATCHES:
            for compiled in (False,) if device == "cpu" else (False, True):
                layout = "channels_last"
                pair = [Trained(name, o, batch, device, layout, optimizer, compiled) for o in (None, options)]
                rows.append(
                    {"measure": "seconds compiled" if compiled else "seconds", "network": name, "gates": gates}
                    | {"layout": layout, "optimizer": optimizer, "batch": batch}
                    | ratio_of(pair, rounds if batch > 8 else 8 * rounds)
                    | {"goal": goals[batch] if device == "cpu" else 1.05}
                )
                print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    value = f"{row['ratio']:.3f}" if "ratio" in row else f"+{row['more']:g}"
    spread = f" [{row['lower quartile']:.3f}, {row['upper quartile']:.3f}]" if "n" in row else ""
    goal = "" if row["goal"] is None else f"≤ {row['goal']:g}"
    return (
        f"{row['measure']:<22}{row['network']:<10} {row['gates']:<35} b{row['batch']:<4} {row['layout']}, "
        f"{row['optimizer']:<14} {row['dense']:>8} {row['gated']:>8}  {value}{spread} {goal}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=15, help="of steps in turn; 0: no times, eight times as many at small batches"
    )
    parser.add_argument("--batch", type=int, default=128, help="for what is counted")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="AdamW fused", help="on both sides")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"aten calls: {CALLS}\nkept MiB: {KEPT}\nhost synchronisations: {', '.join(SYNCS)}\n")
    rows = counted(device, args.batch)
    print("\n".join(map(line, rows)), flush=True)
    if args.rounds:
        rows += timed(device, args.rounds, args.optimizer)
    if args.record:
        meanings = {"aten calls": CALLS, "kept MiB": KEPT, "host synchronisations": list(SYNCS)}
        record = {"rows": rows, "meanings": meanings, "command": shlex.join(["python", *sys.argv])}
        record |= {"threads": torch.get_num_threads(), **origin()}
        path = Path(__file__).parent / "results" / "overhead.json"
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
