"""Whether a model can do other things in training mode: whether code that its forward can reach reads ``training``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from zerogate.modules.index import modules_by_name
from zerogate.modules.internals import RUNNING_NORM


def reads_mode(model: nn.Module) -> bool:
    """Whether code that the model's forward can reach reads an attribute ``training``, torch's own code aside.

    Followed are all methods of the model's modules and all functions that are called by their names: more than the
    forward will run. What torch's layers do in training mode (dropout, batch statistics) does not count, and neither does
    a class of norms that is derived from torch's.
    """
    kinds: set[type] = set()
    held: list[FunctionType] = []
    for module in modules_by_name(model).values():
        kind = type(module)
        if not _is_torch(kind.__module__) and not isinstance(module, RUNNING_NORM):
            kinds.add(kind)
        for value in vars(module).values():
            if type(value) in _INSIDE:
                held += _functions_in(value)
    return _any_reads(frozenset(kinds), frozenset(held))


@lru_cache(maxsize=256)
def _any_reads(kinds: frozenset[type], held: frozenset[FunctionType]) -> bool:
    """Whether any code does that is reached from the forwards of these classes and from functions that modules hold."""
    methods: dict[str, list[FunctionType]] = {}
    for holder in {holder for kind in kinds for holder in kind.__mro__ if not _is_torch(holder.__module__)}:
        for name, value in vars(holder).items():
            if type(value) in _INSIDE:
                methods.setdefault(name, []).extend(_functions_in(value))
    waiting = [*held, *methods.pop("forward", ()), *methods.pop("__call__", ())]
    seen: set[CodeType] = set()
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen or _is_torch(function.__module__):
            continue
        seen.add(function.__code__)
        names = _names_in(function.__code__)
        if "training" in names:
            return True
        for cell in function.__closure__ or ():
            waiting += _functions_in(_content(cell))
        for name in names:
            waiting += methods.pop(name, ())
            value = function.__globals__.get(name)
            if type(value) is ModuleType and not _is_torch(value.__name__):
                for attribute in names:
                    waiting += _functions_in(vars(value).get(attribute))
            else:
                waiting += _functions_in(value)
    return False


def _is_torch(module: str | None) -> bool:
    return module == "torch" or (module or "").startswith("torch.")


def _names_in(code: CodeType) -> set[str]:
    """Names of attributes and of global variables in a function, and in those that it defines."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
        elif constant == "training":  # as in getattr(module, "training")
            names.add(constant)
    return names


_INSIDE: dict[type, Callable[[Any], Any]] = {
    FunctionType: lambda x: x,
    MethodType: lambda x: x.__func__,
    staticmethod: lambda x: x.__func__,
    classmethod: lambda x: x.__func__,
    property: lambda x: x.fget,
    cached_property: lambda x: x.func,
    partial: lambda x: x.func,
    type(lru_cache(lambda: None)): lambda x: x.__wrapped__,
}
"""What may hold a function in Python → what it holds."""


def _functions_in(value: Any) -> list[FunctionType]:
    """The Python function that a value is, or that it wraps; none for anything else."""
    while type(value) in _INSIDE:
        inside = _INSIDE[type(value)](value)
        if inside is value:
            return [value]
        value = inside
    return []


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
