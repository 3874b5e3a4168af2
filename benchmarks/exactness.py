"""How far a compacted model is from the gated one in float64, for models whose inputs and outputs are nested in any way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zerogate as zg


class Float64(TorchFunctionMode):
    """Keeps a float64 model in float64: several norms and softmaxes go through float32 whatever they are given, and
    round what differs in the last bit to what differs in the eighth digit, or to nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args = [torch.float64 if x is torch.float32 else x for x in args]
        return func(*args, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})


def precision(model: nn.Module) -> AbstractContextManager[Any]:
    """`Float64` for a model in float64."""
    kept = all(p.dtype == torch.float64 for p in model.parameters() if p.is_floating_point())
    return Float64() if kept else nullcontext()


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
        with precision(model):
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


SMALLEST = 1e-5
"""Outputs that are smaller, relative to the largest of all, may be nothing but what rounding leaves of zero."""


def largest_difference(gated: nn.Module, small: nn.Module, inputs: Any) -> float:
    """The largest, over the floating tensors of the outputs, of max |gated − small| / max |gated|; inf where shapes differ.

    An output's difference is relative to its own largest entry, and to no less than `SMALLEST` of the largest of all."""
    a, b = outputs(gated, inputs), outputs(small, inputs)
    if [x.shape for x in a] != [x.shape for x in b]:
        return math.inf
    if not all(x.isfinite().all() for x in (*a, *b)):
        return math.nan
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.numel()]
    sizes = [x.abs().max().item() for x, _ in pairs]
    least = SMALLEST * max(sizes, default=0.0)
    apart = [(x - y).abs().max().item() for x, y in pairs]
    return max((d / (max(n, least) or 1.0) for d, n in zip(apart, sizes, strict=True)), default=0.0)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The floating tensors that a model returns, from the seed 0."""
    with torch.no_grad(), precision(model):
        torch.manual_seed(0)
        return list(floating_tensors(call(model, inputs)))


# training mode


def without_dropout(model: nn.Module) -> None:
    """Dropout and dropped paths get the probability 0, wherever a module keeps it."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if isinstance(value, float) and ("drop" in name or name.startswith("mask_")):
                    setattr(holder, name, 0.0)


def random_in_training(model: nn.Module, inputs: Any) -> str:
    """Why two networks cannot be compared in training mode: the forward needs more than the inputs, or draws numbers.

    Runs a copy."""
    model = copy.deepcopy(model).train()
    runs = []
    try:
        for seed in (0, 1):
            with torch.no_grad(), precision(model):
                torch.manual_seed(seed)
                runs.append(list(floating_tensors(call(model, inputs))))
    except Exception as error:
        return f"does not run in training mode: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    same = [x.shape for x in runs[0]] == [x.shape for x in runs[1]] and all(map(torch.allclose, *runs))
    return "" if same else "draws random numbers in training mode"
