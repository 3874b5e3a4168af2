"""A model's parameters and buffers by name, tied ones once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zerogate.modules.internals import buffers_of, children_of, parameters_of, transient_names_of


def modules_by_name(model: nn.Module, twice: bool = False) -> dict[str, nn.Module]:
    """What ``model.named_modules()`` yields, several times as fast; ``twice``: under all its names what is held twice."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if not twice and id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        if children_of(module):
            inside = f"{name}." if name else ""
            waiting += [(inside + n, child) for n, child in reversed(children_of(module).items()) if child is not None]
    return found


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, by their first name."""
    seen: set[int] = set()
    for prefix, module in modules_by_name(model).items():
        for name, tensor in [*parameters_of(module).items(), *buffers_of(module).items()]:
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{prefix}.{name}" if prefix else name), tensor


def tensor_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers, those that are tied once."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(model))


def overwrite_masked(weights: Iterable[Tensor], masked: Iterable[Tensor]) -> None:
    """Copies weights times their gates into the weights, zeros as +0: a negative weight times 0 is −0.0, and files leave
    out +0 alone."""
    with torch.no_grad():
        for weight, value in zip(weights, masked, strict=True):
            weight.copy_(value)
            weight.masked_fill_(weight == 0, 0)


def tied_names(model: nn.Module, modules: Mapping[str, nn.Module] | None = None) -> dict[str, list[str]]:
    """First name of every parameter and buffer → all its names. ``modules``: those of the model under all their names."""
    names: dict[int, list[str]] = {}
    for prefix, module in (modules_by_name(model, twice=True) if modules is None else modules).items():
        for name, tensor in [*parameters_of(module).items(), *buffers_of(module).items()]:
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {all_names[0]: all_names for all_names in names.values()}


def owner_of(name: str) -> str:
    """Name of the module that owns a parameter or buffer; "" is the root."""
    return name.rpartition(".")[0]


def put(modules: Mapping[str, nn.Module], names: Sequence[str], tensor: Tensor) -> set[nn.Module]:
    """Replaces a parameter or buffer under all its names; returns the modules that own it.

    ``modules``: all of the model's, with those it holds twice under both names."""
    owners = set()
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module = modules[owner]
        (parameters_of(module) if attribute in parameters_of(module) else buffers_of(module))[attribute] = tensor  # type: ignore[assignment]
        owners.add(module)
    return owners


def transient_buffers(model: nn.Module) -> set[str]:
    """First names of buffers that are registered with ``persistent=False`` wherever they are."""
    found = set()
    for first, names in tied_names(model).items():
        places = [(model.get_submodule(owner_of(name)), name.rpartition(".")[2]) for name in names]
        if all(attribute in transient_names_of(module) for module, attribute in places):
            found.add(first)
    return found


def copy_with(model: nn.Module, instead: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A deep copy that holds ``instead(name, tensor)`` in place of each parameter and buffer; those are not copied."""
    return deep_copy(model, {id(tensor): instead(name, tensor) for name, tensor in named_tensors(model)})


def deep_copy(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """`copy.deepcopy` that also takes results of a computation, which modules keep for a picture or a loss: without the
    graph that they are part of."""
    with WithoutGraph():
        return copy.deepcopy(value, memo)


class WithoutGraph(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that are part of a graph, detached; torch itself refuses them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            x, memo = args
            if id(x) not in memo:
                with torch.no_grad():
                    memo[id(x)] = x.detach().clone()
            return memo[id(x)]
        return func(*args, **(kwargs or {}))
