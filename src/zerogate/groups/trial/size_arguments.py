"""Sizes that ops are given, and the labels that they count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zerogate.groups.arguments import tensors_among
from zerogate.groups.label_tensors import varying_rows
from zerogate.groups.ops import Family
from zerogate.groups.recording.record import Step

Arguments = Mapping[str, Any]
"""An ATen op's arguments by name, with the defaults filled in."""


@dataclass(frozen=True)
class SizeArgument:
    """A size that an op was given, or that something it works on has."""

    size: int
    rows: Tensor
    """The labels that it counts, int64 [size, m]: as many of these rows as have a label that stays must the size be."""
    argument: str
    """Name of the op's argument."""
    entry: int | None
    """Place in the argument, if that is a list."""


class SizeArguments:
    """The size arguments of a recording's steps, read once for each step."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[list[object], list[SizeArgument]]] = {}

    def of(self, step: Step) -> list[SizeArgument]:
        """What `size_arguments` says of the step, with the labels that its results have by now."""
        labels: list[object] = [labels for _, labels in step.outs]
        known = self._known.get(id(step))
        if known is None or any(was is not now for was, now in zip(known[0], labels, strict=True)):
            known = self._known[id(step)] = labels, size_arguments(step)
        return known[1]

    def related_sizes(self, step: Step) -> list[SizeArgument]:
        """Sizes an op depends on: its own size arguments; for slicing ops also its input's sizes, from which they may be
        computed (``x.split(self.width // 2)``); for all others but relayouts also its output's."""
        own = self.of(step)
        if step.spec.family is Family.SLICE:
            return own + input_sizes(step)
        return own if step.spec.family is Family.RELAYOUT else own + output_sizes(step)


def size_arguments(step: Step) -> list[SizeArgument]:
    """The size arguments of an op that count labels."""
    bound = step.bound()
    groups = _group_counts(step, bound)
    return [*_written_shapes(step, bound), *_slice_bounds(step, bound), *_normalized_shape(step, bound), *groups]


def output_sizes(step: Step) -> list[SizeArgument]:
    """Sizes of an op's results: whatever else meets these must have the same."""
    sizes: list[SizeArgument] = []
    for i, (full, results) in enumerate(step.outs):
        for labels in tensors_among([results]):
            rows = ((d, n, varying_rows(labels, d)) for d, n in enumerate(full))
            sizes += [SizeArgument(n, r, f"result {i}", d - len(full)) for d, n, r in rows if r is not None]
    return sizes


def input_sizes(step: Step) -> list[SizeArgument]:
    """Sizes of what an op was given."""
    rows = [(n, d, varying_rows(labels, d)) for labels in step.entering for d, n in enumerate(labels.shape)]
    return [SizeArgument(n, r, "operand", d) for n, d, r in rows if r is not None]


def slice_starts(step: Step, bound: Arguments) -> Iterator[tuple[str, Tensor]]:
    """For a slice of channels that does not begin with the first: the argument that says where it begins, and the rows of
    labels before that place."""
    argument = step.spec.start
    dim, start = bound.get("dim", 0), bound.get(argument)
    if not start or not step.entering or bound.get("step", 1) > 1:
        return
    rows = varying_rows(step.entering[0], dim)
    if rows is not None and start > 0:
        yield argument, rows[:start]


def _size_argument(
    argument: str, entry: int | None, size: object, labels: object, dim: int, stop: int | None = None
) -> Iterator[SizeArgument]:
    """The size as a count of labels along ``dim``, once for each tensor of labels in which these vary; of labels up to
    ``stop``."""
    for each in tensors_among(labels) if isinstance(size, int) and size > 0 else ():
        rows = varying_rows(each, dim)
        if rows is not None and isinstance(size, int):
            yield SizeArgument(size, rows[:stop], argument, entry)


def _written_shapes(step: Step, bound: Arguments) -> Iterator[SizeArgument]:
    """Of ops that lay a tensor out anew: the shape that they give it."""
    if not step.outs:
        return
    full, labels = step.outs[0]
    if labels is None:
        return
    for argument in ("size", "shape"):
        value = bound.get(argument)
        if isinstance(value, (list, tuple)) and step.spec.family is Family.RELAYOUT:
            for i, n in enumerate(value):
                yield from _size_argument(argument, i, n, labels, i - len(value))
    if step.name == "unflatten":
        dim = bound["dim"] % (len(full) - len(bound["sizes"]) + 1)
        for i, n in enumerate(bound["sizes"]):
            yield from _size_argument("sizes", i, n, labels, dim + i)


def _slice_bounds(step: Step, bound: Arguments) -> Iterator[SizeArgument]:
    """Of ops that slice: lengths of their pieces, and where they begin and end."""
    if step.spec.family is not Family.SLICE or not step.entering:
        return
    dim = bound.get("dim", 0)
    for argument in ("split_size", "split_sizes", "length"):
        value = bound.get(argument)
        if isinstance(value, (list, tuple)):
            for i, n in enumerate(value):
                yield from _size_argument(argument, i, n, step.outs[i][1], dim)
        else:
            yield from _size_argument(argument, None, value, step.outs[0][1], dim)
    for argument in ("start", "end"):
        value = bound.get(argument)
        yield from _size_argument(argument, None, value, step.entering[0], dim, value)


def _normalized_shape(step: Step, bound: Arguments) -> Iterator[SizeArgument]:
    """Of norms over the last dimensions: how long these are."""
    shape = bound.get("normalized_shape", ())
    labels = step.outs[0][1] if step.outs else None
    for i, n in enumerate(shape):
        yield from _size_argument("normalized_shape", i, n, labels, i - len(shape))


def _group_counts(step: Step, bound: Arguments) -> Iterator[SizeArgument]:
    """Of convolutions, norms and shuffles in groups of channels: how many groups there are."""
    argument = next((k for k in ("groups", "num_groups", "group") if k in bound), "")
    if bound.get(argument, 1) <= 1 or not step.entering:
        return
    labels = step.outs[0][1] if step.outs else None
    rows = varying_rows(labels if isinstance(labels, Tensor) else step.entering[0], 1)
    if rows is not None and len(rows) % bound[argument] == 0:
        yield SizeArgument(bound[argument], rows.reshape(bound[argument], -1), argument, None)
