"""Sizes that ops are given, and the labels that they count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from zerogate.groups.labels import narrow_constant
from zerogate.groups.ops import Family
from zerogate.groups.recording.record import Step
from zerogate.groups.recording.tracer import tensors_among

if TYPE_CHECKING:
    from zerogate.groups.trial.replay import Sizes


def starts(step: Step, bound: dict[str, Any], sizes: Sizes) -> Iterable[tuple[str, int]]:
    """Where a cut along channels must begin, and under what name it says so."""
    key = "index" if step.name == "select" else "start"
    dim, start = bound.get("dim", 0), bound.get(key)
    if not start or not step.entering or bound.get("step", 1) > 1:
        return
    rows = rows_along(step.entering[0], dim)
    if rows is not None and start > 0:
        yield key, sizes.count(rows[:start])


def rows_along(labels: Tensor | None, dim: int) -> Tensor | None:
    """Labels [size of dim, everything else that varies]; None where they do not vary along it."""
    if labels is None or not labels.numel():
        return None
    dim %= labels.ndim
    (narrow,) = narrow_constant(labels)
    if narrow.shape[dim] == 1 and labels.shape[dim] > 1:
        return None
    return narrow.movedim(dim, 0).reshape(labels.shape[dim], -1)


class Demand(NamedTuple):
    """A size that an op was given, the rows of labels it counts, and the argument that gave it with the place in that,
    if it is a list."""

    size: int
    rows: Tensor
    key: str
    entry: int | None


def demands(step: Step) -> list[Demand]:
    """Sizes that the op was given."""
    if "demands" in step.__dict__:
        return step.__dict__["demands"]
    bound, found = step.bound(), list[Demand]()
    outs = [labels for _, labels in step.outs]
    out = outs[0] if outs else None

    def ask(key: str, entry: int | None, size: Any, labels: Any, dim: int, stop: int | None = None) -> None:
        for each in tensors_among(labels) if isinstance(size, int) and size > 0 else ():
            rows = rows_along(each, dim)
            if rows is not None:
                found.append(Demand(size, rows[:stop], key, entry))

    for key in ("size", "shape"):
        value = bound.get(key)
        if isinstance(value, (list, tuple)) and out is not None and step.spec.family is Family.RELAYOUT:
            for i, n in enumerate(value):
                ask(key, i, n, out, i - len(value))
    if step.name == "unflatten" and out is not None:
        dim = bound["dim"] % (len(step.outs[0][0]) - len(bound["sizes"]) + 1)
        for i, n in enumerate(bound["sizes"]):
            ask("sizes", i, n, out, dim + i)
    if step.spec.family is Family.SLICE and step.entering:
        dim = bound.get("dim", 0)
        for key in ("split_size", "split_sizes", "length"):
            value = bound.get(key)
            if isinstance(value, (list, tuple)):
                for i, n in enumerate(value):
                    ask(key, i, n, outs[i], dim)
            else:
                ask(key, None, value, outs[0], dim)
        for key in ("start", "end"):
            ask(key, None, bound.get(key), step.entering[0], dim, bound.get(key))
    if "normalized_shape" in bound:
        for i, n in enumerate(bound["normalized_shape"]):
            ask("normalized_shape", i, n, out, i - len(bound["normalized_shape"]))
    key = next((k for k in ("groups", "num_groups", "group") if k in bound), "")
    if bound.get(key, 1) > 1 and step.entering:
        rows = rows_along(out if isinstance(out, Tensor) else step.entering[0], 1)
        if rows is not None and len(rows) % bound[key] == 0:
            found.append(Demand(bound[key], rows.reshape(bound[key], -1), key, None))
    step.__dict__["demands"] = found
    return found


def widths(step: Step) -> list[Demand]:
    """Sizes of what a step made: what else it meets must have the same."""
    found = list[Demand]()
    for i, (full, labels) in enumerate(step.outs):
        if isinstance(labels, Tensor):
            rows = ((d, n, rows_along(labels, d)) for d, n in enumerate(full))
            found += [Demand(n, r, f"result {i}", d - len(full)) for d, n, r in rows if r is not None]
    return found


def asked(step: Step) -> list[Demand]:
    """`demands`, and where an op takes no sizes those of what it made; of a cut those of what it was given: its own may be
    worked out from them, as in ``x.split(self.width // 2)``."""
    if step.spec.family is not Family.SLICE:
        return demands(step) + ([] if step.spec.is_move else widths(step))
    given = [(n, d, rows_along(labels, d)) for labels in step.entering for d, n in enumerate(labels.shape)]
    return demands(step) + [Demand(n, rows, "given", d) for n, d, rows in given if rows is not None]
