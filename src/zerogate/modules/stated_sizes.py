"""Sizes that modules state as attributes: those that a module was made with, and those that its forward sets.

A head or stride leaves no trace in the shapes of tensors, so networks are told apart by such numbers. A number that a
forward sets (the shape of what came last, a counter) says nothing of how a network was made.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType

from torch import nn

from zerogate.checks import is_whole
from zerogate.modules.index import join_name, modules_by_name

Size = int | list[int]


def size_of(value: object) -> Size | None:
    """An int, or the ints in a tuple or list, as JSON has them; None for anything else."""
    if isinstance(value, (tuple, list)):
        sizes = [v for v in value if is_whole(v, least=None)]
        return sizes if value and len(sizes) == len(value) else None
    return value if is_whole(value, least=None) else None


def stated_sizes(module: nn.Module) -> dict[str, Size]:
    """The ints, and tuples and lists of ints, that a module itself holds under a public name."""
    return {
        name: size
        for name, value in vars(module).items()
        if not name.startswith("_") and (size := size_of(value)) is not None
    }


def set_by_forwards(model: nn.Module) -> set[str]:
    """Names of attributes, as ``path.attribute``, that the forward of their module's class assigns in any mode, whether it
    has run or not."""
    names: set[str] = set()
    for path, module in modules_by_name(model).items():
        names.update(join_name(path, name) for name in assigned_by(type(module)))  # type: ignore[arg-type]
    return names


@cache
def assigned_by(kind: type[nn.Module]) -> frozenset[str]:
    """Attributes that the forward of a class assigns, and the methods of the class that it mentions."""
    methods = {n: f for c in reversed(kind.__mro__) if c not in nn.Module.__mro__ for n, f in vars(c).items()}
    assigned: set[str] = set()
    waiting, seen = ["forward"], {"forward", "__init__"}
    while waiting:
        method = inspect.unwrap(methods[name]) if (name := waiting.pop()) in methods else None
        for code in _codes(method):
            assigned.update(i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")
            waiting += [n for n in code.co_names if n in methods and n not in seen]
            seen.update(code.co_names)
    return frozenset(assigned)


def _codes(function: object) -> Iterator[CodeType]:
    """The code of a function and of all functions inside it; nothing for anything else."""
    waiting = [function.__code__] if isinstance(function, FunctionType) else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [c for c in code.co_consts if isinstance(c, CodeType)]


class SizesSet:
    """What a run changes of the sizes that modules state.

    Args:
        model: before the run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = _held(model)

    def names(self, model: nn.Module) -> set[str]:
        """Names of attributes, as ``path.attribute``, that are others after the run, or new: equal tuples and lists that
        are other objects are others, since only an assignment makes them so."""
        after = _held(model)
        return {name for name in {*self._before, *after} if not _same(self._before.get(name), after.get(name))}


def _held(model: nn.Module) -> dict[str, tuple[object, Size]]:
    """Name of each attribute that states sizes → the object that it is, and what that held."""
    return {
        join_name(path, name): (vars(module)[name], size)
        for path, module in modules_by_name(model).items()
        for name, size in stated_sizes(module).items()
    }


def _same(a: tuple[object, Size] | None, b: tuple[object, Size] | None) -> bool:
    if a is None or b is None:
        return a is b
    return a[1] == b[1] and (a[0] is b[0] or not isinstance(a[0], (tuple, list)))
