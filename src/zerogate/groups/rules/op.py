"""What a rule sees of one ATen call, and the register of rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zerogate.groups.labels import along, constant, over, squash, varying_dims
from zerogate.groups.ops import OPS, Family, OpSpec, bind, spec_of

if TYPE_CHECKING:
    from zerogate.groups.recording.recorder import Recorder

Out = Tensor | list[Tensor | None] | None
Rule = Callable[["Op"], Out]
RULES: dict[str | Family, Rule] = {}
"""ATen op, or family of ops → labels of its output(s): None where none comes out, one tensor, or a list with an entry per
output tensor. An op's own rule goes before that of its family."""


class Freeze(Exception):
    """Raised by a rule that cannot follow the labels; carries the reason."""


class UnknownValue(Exception):
    """Raised where a run without data would need a tensor's values; the watcher then runs with data."""


@dataclass(frozen=True)
class View:
    """A parameter or buffer that was moved about before use.

    Attributes:
        name: whose entries these are.
        index: for each of its dimensions, where along it every entry lies, int64 of the tensor's shape now; −1 where an
            entry is none of it.
        changed: whether its values are others now (it was scaled, passed through a function, …).
    """

    name: str
    index: tuple[Tensor, ...]
    changed: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether dimensions have at most been permuted or lengthened by 1."""
        sizes = [int(i.amax()) + 1 for i in self.index]
        now = self.index[0].shape if self.index else torch.Size()
        one_each = all(len(varying_dims(i)) <= 1 for i in self.index)
        return one_each and sorted(s for s in sizes if s > 1) == sorted(s for s in now if s > 1)

    def dim_along(self, dim: int) -> int | None:
        """Which dimension of the parameter lies along this dimension of the tensor."""
        dim %= self.index[0].ndim
        found = [d for d, i in enumerate(self.index) if dim in varying_dims(i)]
        return found[0] if len(found) == 1 else None

    def indices(self, own: int, dim: int) -> Tensor:
        """Indices along the parameter's dimension ``own``, in the order of the tensor's dimension ``dim``."""
        return along(self.index[own], dim)[:, 0]


class Op:
    """One call of an ATen op inside a watched run."""

    def __init__(
        self,
        watcher: Recorder,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        tensors: list[Tensor],
    ) -> None:
        self.watcher, self.func, self.args, self.kwargs, self.out = watcher, func, args, kwargs, out
        self.spec: OpSpec = spec_of(func)
        self.name = self.spec.name
        self.tensors = tensors

    @cached_property
    def bound(self) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        return bind(self.func, self.args, self.kwargs)

    def labels(self, x: Any) -> Tensor | None:
        return self.watcher.labels_of(x) if isinstance(x, Tensor) else None

    def labels_or_zero(self, x: Tensor) -> Tensor:
        found = self.watcher.labels_of(x)
        return constant(x.shape) if found is None else found

    def views(self, x: Any) -> list[View]:
        return self.watcher.views_of(x) if isinstance(x, Tensor) else []

    def unite(self, a: Tensor, b: Tensor) -> None:
        self.watcher.seen.labels.unite(a, b)

    def channels(self, found: Tensor, dim: int) -> Tensor:
        """The one label of each index of a dimension; several labels at one index are tied together."""
        rows = along(found, dim)
        if rows.shape[1] == 1:
            return rows[:, 0]
        vector = rows.amax(1)
        self.unite(rows, vector[:, None])
        return vector

    def mix(self, found: Tensor, dims: set[int]) -> Tensor:
        """Labels after an op that mixes what lies along ``dims``: tied along them, because none of them can shrink."""
        vary = set(varying_dims(found))
        hit = sorted(vary & dims)
        if not hit:
            return found
        if not vary - dims:
            raise Freeze(f"{self.name} over channels")
        return self.mix_all(found, set(hit))

    def mix_all(self, found: Tensor, dims: set[int]) -> Tensor:
        """`mix`, also where nothing else varies."""
        tied = over(found, dims)
        self.unite(found, tied)
        return squash(tied.expand(found.shape))


def rule(*ops: str | Family) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of these ops, which must be declared, or of families of ops."""
    for name in ops:
        if isinstance(name, str) and name not in OPS:
            raise ValueError(
                f"a rule for {name!r}, which is no declared op: groups.ops.declare({name!r}, Family.…) first"
            )

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register


def rule_of(spec: OpSpec) -> Rule | None:
    """The rule of an op; None for one that has none."""
    return RULES.get(spec.name) or RULES.get(spec.family)


def replaced(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """An op's arguments with the function applied to everything in them."""
    if isinstance(arguments, (list, tuple)):
        return type(arguments)([replaced(x, function) for x in arguments])
    if isinstance(arguments, dict):
        return {k: replaced(x, function) for k, x in arguments.items()}
    return function(arguments)
