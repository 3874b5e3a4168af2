"""Runs a copy with units removed beside the record of the whole one.

If every op of the smaller run is the recorded one, with the recorded scalars and the sizes that its labels promise, then
every result is the matching part of the recorded result. The first op that is not shows what the forward takes from a
written size: an attribute of a module, which is found and follows from then on, or something else, and then the channels
of that op stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.errors import first_line
from zerogate.groups.labels import narrow_constant
from zerogate.groups.ops import Family, bind, spec_of
from zerogate.groups.recording.record import Recording, Step, scalars_among
from zerogate.groups.recording.tracer import Tracer, tensors_among
from zerogate.groups.trial.size_arguments import demands, starts
from zerogate.modules.copies import quick_copy
from zerogate.modules.index import named_tensors
from zerogate.modules.internals import storage_key
from zerogate.modules.run import Inputs, call
from zerogate.structure import Structure


@dataclass
class Stop:
    """Where a smaller run left the recorded one: the step's number and why."""

    step: int
    why: str
    given: Any = None
    """What the op there was given: its name, its numbers, and the shapes of its tensors; None where no op was under way."""


class _Vectors:
    """Labels of all steps' results that vary along a single dimension, in one line: to count them at once."""

    def __init__(self, steps: list[Step]) -> None:
        self.of: dict[int, tuple[int, int, Tensor]] = {}
        """Tensor of labels → the dimension, and the number of its vector; holds the labels, too."""
        vectors: list[Tensor] = []
        known: dict[tuple[int, int, int], int] = {}
        for step in steps:
            for full, found in step.outs:
                for labels in [found] if isinstance(found, Tensor) else found or ():
                    if id(labels) in self.of:
                        continue
                    stride = labels.stride()
                    vary = [d for d, n in enumerate(full) if n > 1 and stride[d]]
                    if len(vary) != 1:
                        continue
                    (d,) = vary
                    key = labels.data_ptr(), stride[d], full[d]
                    if key not in known:
                        known[key] = len(vectors)
                        vectors.append(labels.as_strided((full[d],), (stride[d],)))
                    self.of[id(labels)] = d, known[key], labels
        self.labels = torch.cat([torch.empty(0, dtype=torch.int64), *vectors])
        lengths = torch.tensor([len(v) for v in vectors], dtype=torch.int64)
        self.number = torch.repeat_interleave(torch.arange(len(vectors)), lengths)
        self.count = len(vectors)

    def left(self, kept: Tensor) -> list[int]:
        counts = torch.zeros(self.count, dtype=torch.int64)
        return counts.index_add_(0, self.number, kept[self.labels].long()).tolist()


class Sizes:
    """What is left of each label's places when some labels are removed."""

    def __init__(self, kept: Tensor, seen: Recording) -> None:
        self.kept = kept
        if seen.vectors is None:
            seen.vectors = _Vectors(seen.steps)
        self._vectors: _Vectors = seen.vectors
        self._left = self._vectors.left(kept)
        self._shapes: dict[Any, tuple[int, ...] | None] = {}
        self._alive: list[Tensor] = []

    def shape(self, full: tuple[int, ...], labels: Any) -> tuple[int, ...] | None:
        """The shape that is left; None if what is left is no box."""
        if labels is None:
            return full
        if isinstance(labels, list):
            shapes = [self.shape(full, found) for found in labels]
            return None if None in shapes else tuple(min(sizes) for sizes in zip(*shapes, strict=True))
        vector = self._vectors.of.get(id(labels))
        if vector is not None:
            d, number, _ = vector
            return (*full[:d], self._left[number], *full[d + 1 :])
        key = labels.data_ptr(), full, labels.stride()
        if key not in self._shapes:
            self._alive.append(labels)
            (narrow,) = narrow_constant(labels)
            vary = [d for d, (n, stride) in enumerate(zip(full, labels.stride(), strict=True)) if n > 1 and stride]
            stays, left = self.kept[narrow], [*full]
            for d in vary:
                left[d] = int(stays.any(dim=[i for i in vary if i != d]).sum()) if len(vary) > 1 else int(stays.sum())
            whole = int(stays.sum()) == math.prod(left[d] for d in vary) if vary else bool(stays.all())
            self._shapes[key] = tuple(left) if whole else None
        return self._shapes[key]

    def cuts(self, labels: Any) -> bool:
        """Whether any of these labels is removed."""
        return any(not bool(self.kept[narrow_constant(each)[0]].all()) for each in tensors_among([labels]))

    def count(self, rows: Tensor) -> int:
        return int(self.kept[rows].any(1).sum()) if len(rows) else 0


class _Replay(Tracer):
    def __init__(self, seen: Recording, sizes: Sizes) -> None:
        super().__init__(seen.meta)
        self.steps, self.sizes, self.at, self.running = seen.steps, sizes, 0, False
        self.now: tuple[Any, Any, Any] = None, (), {}
        self.norms = {n.module for n in seen.norms}  # tried alone, numbers and all
        self._even = self.by_tensor()
        """Tensors of another size than recorded that are the same all along it → whether they are the same everywhere."""
        self.end = len(self.steps)
        if not seen.meta:  # what comes after the last channel may take sizes from values, which are others now
            cut = (i for i in reversed(range(self.end)) if _touched(self.steps[i], sizes))
            self.end = next(cut, -1) + 1
        self._written: dict[int, Any] = {}
        """Memory of which that is no longer true; held."""

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        spec = spec_of(func)
        if spec.layout_only or self.over:
            return
        self.now = func, args, kwargs
        if self.at == len(self.steps) or spec.name != self.steps[self.at].name:
            # one that cuts nothing off is left out
            cut = self.at < len(self.steps) and self.steps[self.at].spec.family is Family.SLICE
            raise _Left(_wrong_size(self.steps[self.at]) if cut else "the forward takes another way")
        self.running = True

    @property
    def over(self) -> bool:
        """Whether the rest of the run has nothing to do with channels."""
        return self.at >= self.end < len(self.steps)

    def visit(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
        if self.over:
            return
        if spec_of(func).layout_only:
            if out is not args[0] and args[0] in self._even:
                self._even[out] = self._even[args[0]]
            return
        self.running = False
        step = self.steps[self.at]
        even = self._stays_even(func, args, kwargs, tensors)
        for x, (full, labels) in zip(tensors_among(out), step.outs, strict=True):
            shape = tuple(x.shape)
            if shape != self.sizes.shape(full, labels) and 0 not in full:
                if labels is not None or even is None or len(shape) != len(full):
                    raise _Left(_wrong_size(step))
                if step.spec.spreads and not _spread(args[0], shape, full):
                    raise _Left(_wrong_size(step))
                self._even[x] = even
            elif labels is not None and self._even and any([x is given for given in args]):
                self._written[storage_key(x)] = x.untyped_storage()
        if step.spec.family is Family.FACTORY:
            if step.bound().get("fill_value") != bind(func, args, kwargs).get("fill_value"):
                raise _Left(f"{step.name} with a number that depends on the size")
        elif not step.spec.only_sizes:
            if step.module not in self.norms and step.scalars != scalars_among((args, kwargs)):
                raise _Left(f"{step.name} with a number that depends on the size")
        elif step.spec.start:
            given = bind(func, args, kwargs)
            for key, start in starts(step, step.bound(), self.sizes):
                if given.get(key) not in (start, None):
                    raise _Left(_wrong_size(step))
        elif "group_norm" in step.name:
            given = bind(func, args, kwargs)
            if any(
                self.sizes.count(rows) not in (given.get("num_groups"), given.get("group"))
                for _, rows, *_ in demands(step)
            ):
                raise _Left(f"{step.name} in a number of groups that is written down")
        self.at += 1

    def _stays_even(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool | None:
        """What may be said of a result that has another size than recorded: True if it is the same everywhere, False if it
        is the same all along the dimensions that changed, None if it need not be.

        Raises `_Left` where something that may only be broadcast is used in another way.
        """
        spec = spec_of(func)
        if spec.family is Family.FACTORY:
            return True
        held: list[bool | None] = []
        if self._even:
            held = [None if storage_key(x) in self._written else self._even.get(x) for x in tensors]
        if all(even is None for even in held):
            return False if spec.spreads else None
        if spec.family is Family.SLICE:
            return all(even is True for even in held)
        if spec.name in ("gather", "take_along_dim") and held[0] is None:
            return None
        if spec.family is Family.SCATTER and all(even is None for even in held[1:]):
            return None
        if spec.family is Family.IDENTITY or spec.pointwise or spec.broadcast_safe:
            return all(even is True for even in held)
        if spec.family is Family.RELAYOUT and all(held):
            return True
        mask = bind(func, args, kwargs).get("attn_mask")
        if sum(even is not None for even in held) == (mask is not None and self._even.get(mask) is not None):
            return None
        raise _Left(_wrong_size(self.steps[self.at]))


class _Left(Exception):
    pass


def _spread(x: Tensor, shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether x is 1 long wherever what was made of it has another length than recorded."""
    sizes = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    return all(n == 1 or now == was for n, now, was in zip(sizes, shape, full, strict=True))


def _wrong_size(step: Step) -> str:
    if step.spec.family is Family.SLICE:
        return f"{step.name} at a fixed place among channels"
    return f"{step.name} to a size that is written down"


def replay(twin: nn.Module, inputs: Inputs, seen: Recording, sizes: Sizes) -> Stop | None:
    """Runs a smaller model beside the record; where and why it leaves it, or None. ``twin`` is used up."""
    mode = _Replay(seen, sizes)
    mode.results = seen.results
    inputs = seen.prepared(inputs)
    try:
        with torch.inference_mode(), mode:
            call(twin, inputs)
    except _Left as left:
        return Stop(mode.at, str(left), _given(mode))
    except Exception as error:
        step = seen.steps[mode.at] if mode.running else None
        if step is not None and (step.spec.is_move or step.spec.pointwise):
            return Stop(mode.at, _wrong_size(step), _given(mode))
        why = f"the forward depends on its size ({type(error).__name__}: {first_line(error)})"
        return Stop(mode.at, why, _given(mode) if mode.running else None)
    return None if mode.at >= mode.end else Stop(mode.at, "the forward takes another way")


def _touched(step: Step, sizes: Sizes) -> bool:
    return sizes.cuts(step.entering) or any(sizes.cuts(labels) for _, labels in step.outs if labels is not None)


def _given(mode: _Replay) -> Any:
    func, args, kwargs = mode.now
    return func, scalars_among((args, kwargs)), [x.shape for x in tensors_among((args, kwargs))]


def sizes_of(seen: Recording, structure: Structure, kept: Tensor) -> Sizes:
    return Sizes((structure.unit_of < 0) | kept[structure.unit_of], seen)


@dataclass
class Trial:
    """What trial runs need.

    Attributes:
        model: a dense copy as it was watched.
        inputs: the example inputs.
        seen: the record.
        cut: removes from a copy all but the kept units, bool [units].
    """

    model: nn.Module
    inputs: Inputs
    seen: Recording
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module]

    def run(self, structure: Structure, kept: Tensor, sizes: Sizes | None = None) -> Stop | None:
        """Where and why a copy with these units leaves the record; None if it does not."""
        shared = {id(x): x for _, x in named_tensors(self.model)}  # cutting puts others in their place
        small = self.cut(quick_copy(self.model, shared), structure, kept)
        sizes = sizes_of(self.seen, structure, kept) if sizes is None else sizes
        return replay(small, self.inputs, self.seen, sizes)
