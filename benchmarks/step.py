"""What gates cost in a training step: ATen calls, and the ratio of seconds to the dense step, measured A B A B.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py --model googlenet --batch 64 --rounds 7

Prints one JSON object; with --record it is also written to benchmarks/results/step_MODEL.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from provenance import provenance
from torch.utils._python_dispatch import TorchDispatchMode

import zerogate as zg

VARIANTS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "hard concrete": {},
    "hard concrete per example": {"per_example": True},
    "hard concrete, penalty over params": {"objective": zg.Penalty(1.0, over="params")},
    "soft mask, weights": {"gate": zg.SoftMask(), "unit": "weight"},
}
SHAPES = {"lenet300": (1, 28, 28), "lenet5": (1, 28, 28), "convnet": (1, 8, 8)}


class CountCalls(TorchDispatchMode):
    """Counts ATen calls that are not views."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not func.is_view
        return func(*args, **(kwargs or {}))


def make_step(name: str, options: dict[str, Any] | None, batch: int, device: str) -> Callable[[], None]:
    """One forward and backward of a freshly made network."""
    torch.manual_seed(0)
    model = getattr(zg.models, name)().to(device).to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, *SHAPES.get(name, (3, 32, 32)), device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=device)
    sparse = None if options is None else zg.sparsify(model, x[:2], **options)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        if sparse is not None:
            loss = loss + sparse.loss()
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="googlenet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = {name: make_step(args.model, options, args.batch, device) for name, options in VARIANTS.items()}
    calls = {}
    for name, step in steps.items():
        step()
        with CountCalls() as counter:
            step()
        calls[name] = counter.calls
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    ratios = {n: statistics.median(a / b for a, b in zip(t, seconds["dense"], strict=True)) for n, t in seconds.items()}
    record = {
        "model": args.model,
        "batch": args.batch,
        "aten_calls": calls,
        "ratio_to_dense": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "images_per_second": {n: round(args.batch / statistics.median(t), 1) for n, t in seconds.items()},
        "n": args.rounds,
        **provenance(shlex.join(["python", *sys.argv])),
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    print(text)
    if args.record:
        path = Path(__file__).parent / "results" / f"step_{args.model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
