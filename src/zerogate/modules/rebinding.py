"""Functions that modules hold, bound to a copy: closures, defaults, partials, methods and weak references.

``copy.deepcopy`` keeps a function as it is, and with it the module that it was made in: a copy of a model with
``self.head = lambda x: x @ self.embedding.weight.t()`` would go on reading the embedding of the original.
"""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, fx

Memo = dict[int, Any]
"""What `copy.deepcopy` keeps: the id of an original → its copy, or whatever is to stand in its place."""


class Rebinding:
    """Puts functions that refer to copies in place of those that refer to originals.

    Args:
        memo: of the copy that was made; what is copied on the way is added.
    """

    def __init__(self, memo: Memo) -> None:
        self._memo = memo
        self._copies = {id(copied) for copied in memo.values()}
        self._unrelated: dict[int, object] = {}
        """What has nothing to do with the originals; held, so that no other takes its id."""
        self._mended: set[int] = set()

    def mend(self, holder: dict[str, Any]) -> None:
        """Rebinds, in place, what the ``__dict__`` of a copy holds."""
        for name, value in holder.items():
            new = self.in_copy(value)
            if new is not value:
                holder[name] = new

    def in_copy(self, x: Any) -> Any:
        """What a copy is to hold in place of x, which was copied as ``copy.deepcopy`` does it."""
        if isinstance(x, (FunctionType, weakref.ref)):
            return self._of_original(x)
        if isinstance(x, MethodType):
            function, owner = self.in_copy(x.__func__), self.in_copy(x.__self__)
            return x if function is x.__func__ else MethodType(function, owner)
        if isinstance(x, partial):
            return _partial(x, self.in_copy)
        if isinstance(x, tuple):
            return _tuple(x, self.in_copy)
        if id(x) in self._copies and id(x) not in self._mended:  # an object that shares itself with its copies stays
            self._mended.add(id(x))
            self._mend_inside(x)
        return x

    def _mend_inside(self, x: Any) -> None:
        """Rebinds, in place, what a container or object holds that is itself a copy."""
        if isinstance(x, dict):
            self.mend(x)
        if isinstance(x, (list, deque)):
            for i, item in enumerate(x):
                x[i] = self.in_copy(item)
        elif isinstance(x, set):
            items = [self.in_copy(item) for item in x]
            x.clear()
            x.update(items)
        if hasattr(x, "__dict__") and not isinstance(x, (Tensor, type, ModuleType, fx.Graph)):
            self.mend(vars(x))

    def _of_original(self, x: Any) -> Any:
        """What a copy is to hold in place of x, which an original refers to; x itself where it leads to no original."""
        if id(x) in self._memo:
            return self._memo[id(x)]
        if not self._leads_to_original(x):
            return x
        if isinstance(x, FunctionType):
            return self._function(x)
        if isinstance(x, MethodType):
            return MethodType(self._of_original(x.__func__), self._of_original(x.__self__))
        if isinstance(x, partial):
            return _partial(x, self._of_original)
        if isinstance(x, tuple):
            return _tuple(x, self._of_original)
        if isinstance(x, weakref.ref):
            return weakref.ref(self._of_original(x()))
        before = set(self._memo)
        new = copy.deepcopy(x, self._memo)
        self._copies.update(id(self._memo[i]) for i in self._memo.keys() - before)
        return self.in_copy(new)

    def _function(self, f: FunctionType) -> FunctionType:
        """The same function of the copies."""
        cells = [self._cell(cell) for cell in f.__closure__ or ()]
        new = FunctionType(f.__code__, f.__globals__, f.__name__, None, tuple(cells))
        self._memo[id(f)] = new  # it may refer to itself
        new.__defaults__ = None if f.__defaults__ is None else tuple(map(self._of_original, f.__defaults__))
        if f.__kwdefaults__ is not None:
            new.__kwdefaults__ = {name: self._of_original(x) for name, x in f.__kwdefaults__.items()}
        new.__qualname__, new.__module__, new.__doc__ = f.__qualname__, f.__module__, f.__doc__
        new.__annotations__ = f.__annotations__
        new.__dict__.update({name: self._of_original(x) for name, x in vars(f).items()})
        for cell, old in zip(cells, f.__closure__ or (), strict=True):
            if cell is not old and cell == CellType():  # not filled yet
                cell.cell_contents = self._of_original(old.cell_contents)
        return new

    def _cell(self, cell: CellType) -> CellType:
        """A new cell for one that leads to an original, the same for all functions that share it."""
        if self._leads_to_original(cell):
            return self._memo.setdefault(id(cell), CellType())
        return cell

    def _leads_to_original(self, x: object) -> bool:
        """Whether anything that x refers to has been copied."""
        waiting, seen = [x], dict[int, object]()
        while waiting:
            value = waiting.pop()
            if id(value) in self._memo:
                return True
            if id(value) not in seen and id(value) not in self._unrelated:
                seen[id(value)] = value
                waiting.extend(_referents(value))
        self._unrelated |= seen
        return False


def refers_to_anything(function: FunctionType) -> bool:
    """Whether a function holds anything but code."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__ or vars(function))


def _partial(x: partial[Any], rebound: Any) -> Any:
    """A partial with what it holds rebound; itself where nothing changes."""
    held = [x.func, *x.args, *x.keywords.values()]
    new = [rebound(item) for item in held]
    if all(a is b for a, b in zip(held, new, strict=True)):
        return x
    n = 1 + len(x.args)
    made = partial(new[0], *new[1:n], **dict(zip(x.keywords, new[n:], strict=True)))
    vars(made).update({name: rebound(item) for name, item in vars(x).items()})
    return made


def _tuple(x: tuple[Any, ...], rebound: Any) -> Any:
    new = [rebound(item) for item in x]
    if all(a is b for a, b in zip(x, new, strict=True)):
        return x
    return type(x)(*new) if hasattr(x, "_fields") else type(x)(new)


def _referents(x: object) -> Iterable[object]:
    """What a function, a container or an object refers to."""
    if isinstance(x, FunctionType):
        return [
            *(x.__closure__ or ()),
            *(x.__defaults__ or ()),
            *(x.__kwdefaults__ or {}).values(),
            *vars(x).values(),
        ]
    if isinstance(x, CellType):
        return [] if x == CellType() else [x.cell_contents]
    if isinstance(x, MethodType):
        return [x.__func__, x.__self__]
    if isinstance(x, partial):
        return [x.func, *x.args, *x.keywords.values(), *vars(x).values()]
    if isinstance(x, weakref.ref):
        return [x()]
    if isinstance(x, dict):
        return list(x.values())
    if isinstance(x, (list, tuple, set, frozenset, deque)):
        return list(x)
    if hasattr(x, "__dict__") and not isinstance(x, (type, ModuleType, fx.Graph, Tensor)):
        return list(vars(x).values())
    return []
