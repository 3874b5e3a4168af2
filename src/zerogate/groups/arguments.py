"""Calls of ATen ops: what torch itself says of an op's arguments, and walks through them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from zerogate.modules.internals import schema_of

Args = tuple[Any, ...]
"""Positional arguments of an op: tensors, numbers, words, and lists of these."""
Kwargs = dict[str, Any]
"""Arguments by name."""
Place = tuple[str, int]
"""File and line of the user's code."""


class _Packet(Protocol):
    @property
    def __name__(self) -> str: ...


class AtenOp(Protocol):
    """One overload of an op, ``aten.add.Tensor``, as torch hands it to a dispatch mode."""

    @property
    def overloadpacket(self) -> _Packet: ...
    @property
    def tags(self) -> Collection[torch.Tag]: ...
    def decompose(self, *args: Any, **kwargs: Any) -> Any: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Argument:
    """What torch states of one argument of an op."""

    name: str
    default: object
    """`MISSING` where it must be given."""
    is_written: bool
    """Whether the op writes to it."""


MISSING = object()
"""In place of the default of an argument that has none."""


@cache
def arguments_of(func: Hashable) -> tuple[Argument, ...]:
    """An ATen op's arguments, in order."""
    return tuple(
        Argument(
            a.name,
            a.default_value if a.has_default_value() else MISSING,
            a.alias_info is not None and a.alias_info.is_write,
        )
        for a in schema_of(func).arguments
    )


def bind(func: Hashable, args: Sequence[Any], kwargs: Kwargs) -> Kwargs:
    """An ATen op's arguments by name, with the defaults filled in."""
    names, defaults = _names_and_defaults(func)
    bound = dict(defaults)
    bound.update(zip(names, args, strict=False))
    bound.update(kwargs)
    return bound


@cache
def _names_and_defaults(func: Hashable) -> tuple[list[str], Kwargs]:
    arguments = arguments_of(func)
    return [a.name for a in arguments], {a.name: a.default for a in arguments if a.default is not MISSING}


@cache
def writes(func: Hashable) -> bool:
    """Whether an op writes to any of its arguments."""
    return any(a.is_written for a in arguments_of(func))


@cache
def aliases(func: Hashable) -> bool:
    """Whether an op writes to its arguments or returns views of them."""
    return writes(func) or any(x.alias_info is not None for x in schema_of(func).returns)


@cache
def takes_device(func: Hashable) -> bool:
    """Whether an op can be told on which device its result is to be."""
    return any(a.name == "device" for a in arguments_of(func))


def map_arguments(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """An op's arguments with the function applied to everything in them that is no list, tuple or dict."""
    if isinstance(arguments, (list, tuple)):
        return type(arguments)([map_arguments(x, function) for x in arguments])
    if isinstance(arguments, dict):
        return {k: map_arguments(x, function) for k, x in arguments.items()}
    return function(arguments)


def tensors_among(arguments: object) -> list[Tensor]:
    """Tensors among an op's arguments or results, in order."""
    if isinstance(arguments, Tensor):
        return [arguments]
    tensors: list[Tensor] = []
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif not isinstance(arguments, (list, tuple)):
        return tensors
    for x in arguments:
        if isinstance(x, Tensor):
            tensors.append(x)
        elif isinstance(x, (list, tuple, dict)):
            tensors += tensors_among(x)
    return tensors


def scalars_among(arguments: object) -> list[bool | int | float | str]:
    """Numbers and words among an op's arguments, in order."""
    if isinstance(arguments, (list, tuple)):
        return [x for item in arguments for x in scalars_among(item)]
    if isinstance(arguments, dict):
        return scalars_among(list(arguments.values()))
    return [arguments] if isinstance(arguments, (bool, int, float, str)) else []


def without_tensors(arguments: Any) -> Any:
    """An op's arguments with None in place of each tensor."""
    return map_arguments(arguments, lambda x: None if isinstance(x, Tensor) else x)
