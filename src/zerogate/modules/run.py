"""Running a model on example inputs: in the form in which they are given, without touching random numbers, in float64; and
the cores there are to run on."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What one forward takes: a tensor, positional arguments or keyword arguments."""


def usable_cores() -> int:
    """The number of CPU cores that this process may use; all of the machine's where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def call(model: nn.Module, inputs: Inputs) -> object:
    """model(tensor), model(*tuple) or model(**mapping)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def tensors_of(value: object) -> list[Tensor]:
    """All tensors in nested containers and dataclasses, in order; caches and other objects are left alone."""
    found = []
    for x in tree_leaves(value):
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, Mapping):
            found += tensors_of(list(x.values()))
        elif dataclasses.is_dataclass(x) and not isinstance(x, type):
            found += tensors_of([getattr(x, f.name) for f in dataclasses.fields(x)])
    return found


def holds_numbers(x: Tensor) -> bool:
    """Whether a tensor holds real or complex numbers: what is computed with, and not counts, indices or booleans."""
    return x.is_floating_point() or x.is_complex()


def wide_dtype(x: Tensor) -> torch.dtype:
    """float64, or complex128; a tensor's own dtype where it holds no such numbers."""
    return torch.complex128 if x.is_complex() else torch.float64 if x.is_floating_point() else x.dtype


@contextmanager
def kept_rng(model: nn.Module) -> Iterator[None]:
    """Leaves the random state of the CPU and of the model's devices as it was, and that of Python and NumPy."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), sys.modules.get("numpy")  # a forward that draws from NumPy has imported it
    drawn = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)


def seed() -> None:
    """Random numbers of torch, Python and NumPy begin anew, always with the same; for use within `kept_rng`."""
    torch.manual_seed(0)
    random.seed(0)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(0)


class KeepFloat64(TorchFunctionMode):
    """Keeps a float64 model in float64 where its forward asks for float32, as several norms and softmaxes do.

    Two networks that differ in the last bit of float64 would otherwise differ in the eighth digit of what is rounded."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is Tensor.float:
            return args[0].double()
        args = [torch.float64 if x is torch.float32 else x for x in args]
        return func(*args, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})
