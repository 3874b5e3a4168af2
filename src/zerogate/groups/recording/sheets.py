"""Sheets of labels: how an op that knows of one label for each entry is asked about entries that have several.

Its rule runs once for each sheet, as if there were no other: what the units of one sheet need does not depend on the others,
since these lie along other dimensions. Sheets of several operands that meet belong together if they vary along the same
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from zerogate.groups.label_tensors import Sheets, varying_dims
from zerogate.groups.ops import OpSpec
from zerogate.groups.rules.op import Op, Out
from zerogate.groups.rules.protocol import Freeze, RuleContext

Sheet = dict[int, Tensor]
"""id of an operand → its labels."""


class OneSheet:
    """The `RuleContext` of a run as the rule of one op sees it that is asked about one sheet.

    Args:
        context: of the run.
        sheet: labels of the op's operands.
        first: whether the rule has not been asked yet: then it may record layers and norms.
    """

    def __init__(self, context: RuleContext, sheet: Sheet, first: bool) -> None:
        self._context, self._sheet, self._first = context, sheet, first

    def __getattr__(self, name: str) -> Any:
        if name in ("record_layer", "record_grouped_conv", "record_repeats") and not self._first:
            raise Freeze("a layer over channels along several dimensions")
        return getattr(self._context, name)

    def labels_of(self, x: Tensor) -> Tensor | None:
        return self._sheet.get(id(x))

    def sheets_of(self, x: Tensor) -> list[Tensor]:
        if self._first:
            return self._context.sheets_of(x)
        return [self._sheet[id(x)]] if id(x) in self._sheet else []

    def record_norm(self, labels: Tensor) -> bool:
        return False

    def defer_freeze(self, result: Tensor, labels: Tensor, reason: str) -> None:
        self._context.freeze(labels, reason)


def ask_on_sheets(context: RuleContext, op: Op, ask: Callable[[Op], Out]) -> list[Sheets]:
    """Labels of each result of an op, operands of which have several sheets; ``ask``: what asks the op's rule."""
    results = [Sheets() for _ in op.results]
    for number, sheet in enumerate(sheets_among(context, op.spec, op.tensors)):
        seen = cast(RuleContext, OneSheet(context, sheet, number == 0))
        one = Op(seen, op.func, op.args, op.kwargs, op.out, op.tensors)
        if number and (stranger := _stranger(one, sheet)):
            for labels in sheet.values():
                context.freeze(labels, stranger)
            continue
        said = ask(one)
        if isinstance(said, Sheets):  # the rule knows of sheets, and has seen all of them
            return [said] * len(results)
        of_each = said if isinstance(said, list) else [said] * len(results)
        for result, own in zip(results, of_each, strict=True):
            if own is not None:
                result.append(own)
    return results


def lie_apart(context: RuleContext, spec: OpSpec, tensors: list[Tensor]) -> bool:
    """Whether labels of operands that meet entry by entry vary along different dimensions, as in an outer product."""
    if not spec.pointwise:
        return False
    along = [{d - x.ndim for d in varying_dims(y)} for x in tensors if (y := context.labels_of(x)) is not None]
    along = [dims for dims in along if dims]
    return any(not one & other for i, one in enumerate(along) for other in along[:i])


def sheets_among(context: RuleContext, spec: OpSpec, tensors: list[Tensor]) -> list[Sheet]:
    """The sheets of an op's operands. Where operands meet entry by entry, or as matrices, those that vary along the same
    dimensions, counted from the end, are one sheet; else those of the same number."""
    sheets: list[Sheet] = []
    along: list[set[str]] = []
    meets = spec.pointwise or spec.name in (*_JOINED, *_PRODUCTS)
    for position, x in enumerate(tensors):
        for number, labels in enumerate(context.sheets_of(x)):
            own = {_name_of(spec, position, d, x.ndim) for d in varying_dims(labels)}
            place = number
            if meets and not own:
                place = 0
            elif meets:
                free = [i for i, sheet in enumerate(sheets) if id(x) not in sheet or sheet[id(x)] is labels]
                place = next((i for i in free if own & along[i]), len(sheets))
            while place >= len(sheets):
                sheets.append({})
                along.append(set())
            sheets[place][id(x)] = labels
            along[place] |= own
    return sheets


_JOINED = ("cat", "concat", "concatenate", "stack")
_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "_sparse_mm")


def _name_of(spec: OpSpec, position: int, dim: int, ndim: int) -> str:
    """A name for a dimension of an operand, the same for those of other operands that it meets."""
    if spec.name in _PRODUCTS:
        if dim - ndim == (-1 if position == 0 or ndim == 1 else -2):
            return "summed"
        if dim - ndim >= -2:
            return f"matrix {position}"
    return str(dim - ndim)


def _stranger(op: Op, sheet: Sheet) -> str:
    """Why a further sheet stays: something meets it that would have to lose the same places, and does not. Empty if there is
    no such thing."""
    for x in op.tensors:
        if id(x) not in sheet and x.numel() > 1 and not op.views(x):
            vary = {d - y.ndim for y in op.tensors if id(y) in sheet for d in varying_dims(sheet[id(y)])}
            if not op.spec.pointwise or any(-d <= x.ndim and x.shape[d] > 1 for d in vary):
                return f"{op.name} of units along positions with something that keeps all positions"
    return ""
