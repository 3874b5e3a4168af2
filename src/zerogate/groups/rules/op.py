"""What a rule sees of one ATen call, and the register of rules."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zerogate.groups.arguments import Args, AtenOp, Kwargs, bind
from zerogate.groups.label_tensors import Sheets, collapse, max_over, no_labels, rows_along, varying_dims
from zerogate.groups.ops import OPS, Family, spec_of
from zerogate.groups.rules.protocol import Freeze, RuleContext, View

INTEGERS = (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Dtypes of indices and masks."""


class Op:
    """One call of an ATen op inside a recorded run."""

    def __init__(
        self, context: RuleContext, func: AtenOp, args: Args, kwargs: Kwargs, out: Any, tensors: list[Tensor]
    ) -> None:
        self.context, self.func, self.args, self.kwargs = context, func, args, kwargs
        self.out = out
        """What the op returned: a tensor, or several."""
        self.tensors = tensors
        """Tensors among the arguments, in order."""
        self.spec = spec_of(func)
        self.name = self.spec.name

    @cached_property
    def bound(self) -> Kwargs:
        """Arguments by name, defaults filled in."""
        return bind(self.func, self.args, self.kwargs)

    @property
    def results(self) -> list[Any]:
        """What the op returned, as a list."""
        return list(self.out) if isinstance(self.out, (list, tuple)) else [self.out]

    def labels(self, x: object) -> Tensor | None:
        """Labels of an argument; None where nothing of it could be removed."""
        return self.context.labels_of(x) if isinstance(x, Tensor) else None

    def sheets(self, x: object) -> list[Tensor]:
        """All labels of an argument, one tensor of them or several; see `Sheets`."""
        return self.context.sheets_of(x) if isinstance(x, Tensor) else []

    def sheets_read(self, x: Tensor, dim: int) -> list[Tensor]:
        """All labels of what a layer reads along a dimension: those of x, or new ones along it where x is made of parameters
        alone, or is the same everywhere."""
        sheets = self.sheets(x)
        if not sheets and self.views(x):
            return [self.context.make_channels(x, {dim % x.ndim})]
        made = None if sheets else self.context.constant_channels(x, {dim % x.ndim})
        return sheets if made is None else [made]

    def labels_or_zero(self, x: Tensor) -> Tensor:
        """Labels of an argument, 0 where nothing of it could be removed."""
        labels = self.context.labels_of(x)
        return no_labels(x.shape) if labels is None else labels

    def views(self, x: object, integers: bool = False) -> list[View]:
        """Parameters that an argument is made of, and of no activation; see `RuleContext.views_of`."""
        return self.context.views_of(x, integers) if isinstance(x, Tensor) else []

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Ties a[i] to b[i] for every i where both are labels; shapes broadcast."""
        self.context.unite(a, b)

    def channels(self, labels: Tensor, dim: int) -> Tensor:
        """The one label of each index of a dimension, [size]; several labels at one index are tied."""
        rows = rows_along(labels, dim)
        if rows.shape[1] == 1:
            return rows[:, 0]
        vector = rows.amax(1)
        self.unite(rows, vector[:, None])
        return vector

    def tie_along(self, labels: Tensor, dims: Collection[int]) -> Tensor:
        """Labels after an op that mixes what lies along ``dims``: tied along them, because none of them can shrink.

        Raises `Freeze` where they vary along these dimensions alone: all channels are mixed.
        """
        vary = set(varying_dims(labels))
        mixed = vary & set(dims)
        if not mixed:
            return labels
        if mixed == vary:
            raise Freeze(f"{self.name} over channels")
        return self.tie_all_along(labels, mixed)

    def tie_all_along(self, labels: Tensor, dims: Collection[int]) -> Tensor:
        """`tie_along` that also ties where nothing else varies."""
        tied = max_over(labels, dims)
        self.unite(labels, tied)
        return collapse(tied.expand(labels.shape))

    def attach_parameters(self, x: Tensor, labels: Tensor) -> None:
        """Says that the parameters in x, broadcast to these labels, are sliced with them."""
        for view in self.views(x):
            self.context.attach_view(view, labels)
        self.context.tie_to_constant(x, labels)

    def first_result(self, labels: Tensor | None) -> Out:
        """Labels for the first result; the others have none."""
        return labels if isinstance(self.out, Tensor) else [labels, *[None] * (len(self.out) - 1)]

    def all_results(self, labels: Tensor | None) -> Out:
        """The same labels for every result, such as values and their places."""
        return labels if isinstance(self.out, Tensor) else [labels] * len(self.out)


Out = Tensor | Sheets | list[Tensor | None] | None
"""Labels of an op's result(s): one tensor, all sheets of one result, a list with an entry for each result, None where no
labels come out. A rule that returns one tensor is asked again for every further sheet of what enters."""
Rule = Callable[[Op], Out]
RULES: dict[str | Family, Rule] = {}
"""ATen op, or family of ops → its rule. An op's own rule goes before that of its family."""


def rule(*ops: str | Family) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of these ops, which must be declared in `groups.ops`, or of families of ops.

    The rule is called after the op has run, if labels enter it (or always, if the op is declared to make channels). It
    returns the labels of the results, and ties, freezes and records through ``op.context``. It may raise `Freeze`.
    """
    for name in ops:
        if isinstance(name, str) and name not in OPS:
            raise ValueError(f"a rule for {name!r}, which is no declared op; call declare({name!r}, Family.…) first")

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register
