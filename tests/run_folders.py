"""Comparing what runs leave behind, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from zerogate.training.checkpoints import load_checkpoint

TIMINGS = {"images_per_second", "command"}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of everything in nested dicts and lists."""
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{name}/{key}")
    else:
        yield name, value


def differences(first: Path, second: Path, checkpoints: Sequence[str] = ("last.ckpt", "best.ckpt")) -> list[str]:
    """Where two runs differ by a bit, timings and the names of their folders excepted."""
    found = []
    for name in checkpoints:
        one, two = (dict(flat(load_checkpoint(run / name))) for run in (first, second))
        for key in one.keys() | two.keys():
            a, b = one.get(key), two.get(key)
            same = torch.equal(a, b) and a.dtype == b.dtype if torch.is_tensor(a) and torch.is_tensor(b) else a == b
            if not same:
                found.append(f"{name}{key}")
    for name in ("metrics.csv", "compact.safetensors", "mask.safetensors"):
        contents = [(run / name).read_bytes() if (run / name).exists() else None for run in (first, second)]
        if contents[0] != contents[1]:
            found.append(name)
    one, two = (json.loads((run / "result.json").read_text()) for run in (first, second))
    found += [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
    return sorted(set(found) - TIMINGS)
