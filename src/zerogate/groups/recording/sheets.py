"""Sheets of labels: how an op that knows of one label for each entry is asked about entries that have several.

Its rule runs once for each sheet, as if there were no other: what the units of one sheet need does not depend on the others,
since these lie along other dimensions. Sheets of several operands that meet belong together if they vary along the same
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


_JOINED = ("cat", "concat", "concatenate", "stack")
_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "_sparse_mm")


def lie_apart(context: RuleContext, spec: OpSpec, tensors: list[Tensor]) -> bool:
    """Whether labels of operands that meet vary along different dimensions, as in an outer product."""
    if not spec.pointwise and spec.name not in _PRODUCTS:
        return False
    known = [(i, y) for i, x in enumerate(tensors) if (y := context.labels_of(x)) is not None]
    along = [names for i, y in known if (names := _names(spec, i, y.ndim, varying_dims(y)))]
    return any(not one & other for i, one in enumerate(along) for other in along[:i])


def sheets_among(context: RuleContext, spec: OpSpec, tensors: list[Tensor]) -> list[Sheet]:
    """The sheets of an op's operands. Where operands meet entry by entry, or as matrices, those that vary along the same
    dimensions are one sheet; else those of the same number."""
    sheets: list[Sheet] = []
    along: list[set[str]] = []
    for position, x in enumerate(tensors):
        for number, labels in enumerate(context.sheets_of(x)):
            own = _names(spec, position, x.ndim, varying_dims(labels))
            place = number
            if _meet(spec) and not own:
                place = 0
            elif _meet(spec):
                free = [i for i, sheet in enumerate(sheets) if id(x) not in sheet or sheet[id(x)] is labels]
                place = next((i for i in free if own & along[i]), len(sheets))
            while place >= len(sheets):
                sheets.append({})
                along.append(set())
            sheets[place][id(x)] = labels
            along[place] |= own
    return sheets


def _meet(spec: OpSpec) -> bool:
    """Whether it is known which dimensions of an op's operands meet."""
    return spec.pointwise or spec.name in (*_JOINED, *_PRODUCTS)


def _names(spec: OpSpec, position: int, ndim: int, dims: Iterable[int]) -> set[str]:
    """Names for dimensions of an operand, the same as for those of other operands that they meet."""
    names = set()
    for d in dims:
        back = d % ndim - ndim
        if spec.name not in _PRODUCTS or back < -2:
            names.add(str(back))
        else:
            summed = back == (-1 if position == 0 or ndim == 1 else -2)
            names.add("summed" if summed else f"matrix {position}")
    return names


def _stranger(op: Op, sheet: Sheet) -> str:
    """Why a further sheet stays: something meets it that would have to lose the same places, and does not. Empty if there is
    no such thing."""
    vary: set[str] = set()
    for i, y in enumerate(op.tensors):
        if id(y) in sheet:
            vary |= _names(op.spec, i, y.ndim, varying_dims(sheet[id(y)]))
    for i, x in enumerate(op.tensors):
        if id(x) not in sheet and x.numel() > 1 and not op.views(x):
            longer = _names(op.spec, i, x.ndim, [d for d, n in enumerate(x.shape) if n > 1])
            if longer & vary or not _meet(op.spec):
                return f"{op.name} of units along positions with something that keeps all positions"
    return ""
