"""A model's parameters and buffers by name, tied ones once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, by their first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{prefix}.{name}" if prefix else name), tensor


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of every parameter and buffer → all its names."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {all_names[0]: all_names for all_names in names.values()}


def owner_of(name: str) -> str:
    """Name of the module that owns a parameter or buffer; "" is the root."""
    return name.rpartition(".")[0]


def put(model: nn.Module, names: Sequence[str], tensor: Tensor) -> set[nn.Module]:
    """Replaces a parameter or buffer under all its names; returns the modules that own it."""
    owners = set()
    for name in names:
        module, attribute = model.get_submodule(owner_of(name)), name.rpartition(".")[2]
        (module._parameters if attribute in module._parameters else module._buffers)[attribute] = tensor  # type: ignore[assignment]
        owners.add(module)
    return owners
