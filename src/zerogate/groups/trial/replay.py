"""Runs a copy with units removed beside the record of the whole one.

If every op of the smaller run is the recorded one, with the recorded scalars and the sizes that its labels promise, then
every result is the matching part of the recorded result. The first op that is not shows what the forward takes from a
written size: an attribute of a module, which is found and follows from then on, or something else, and then the channels
of that op stay. The same op is one that also reads the same: parameters, inputs, and results of the same ops.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zerogate.errors import first_line
from zerogate.groups.arguments import Args, AtenOp, Kwargs, bind, scalars_among, tensors_among
from zerogate.groups.ops import Family, OpSpec, spec_of
from zerogate.groups.recording.decisions import decided_as
from zerogate.groups.recording.record import RecordedRun, Recording, ResultLabels, Step
from zerogate.groups.recording.sources import Source, Sources
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.trial.size_arguments import SizeArguments, size_arguments, slice_starts
from zerogate.groups.trial.sizes import Shape, Sizes
from zerogate.modules.internals import storage_key
from zerogate.modules.run import Inputs, call

_ANOTHER_WAY = "the forward takes another way"
_NO_SIZES = frozenset(
    """dim dim0 dim1 axis axis0 axis1 source destination start_dim end_dim value eps step stride padding dilation
    output_padding upscale_factor downscale_factor""".split()
)
"""Arguments that are no sizes, also of ops that are given sizes."""


@dataclass(frozen=True)
class OpCall:
    """What an op was given, to compare with what it is given in another run."""

    func: object
    scalars: list[bool | int | float | str]
    shapes: list[torch.Size]
    """Of its tensors."""
    sources: list[Source] = field(default_factory=list)
    """Where these came from."""


@dataclass(frozen=True)
class Divergence:
    """Where a smaller run leaves the recorded one."""

    step: int
    """Number of the recorded step; past all steps for a run that follows the record to its end."""
    reason: str
    call: OpCall | None = None
    """What the op there was given; None where no op was under way."""


def replay(
    small: nn.Module,
    inputs: Inputs,
    recording: Recording,
    recorded: RecordedRun,
    sizes: Sizes,
    arguments: SizeArguments,
) -> Divergence | None:
    """Runs a smaller model, which is used up, beside the record of one run; returns where and why it leaves it, or None."""
    inputs = recording.prepared(inputs)
    run = _Replay(small, inputs, recording, recorded, sizes, arguments)
    try:
        with torch.inference_mode(), run.tracer:
            call(small, inputs)
    except _Diverged as reason:
        return Divergence(run.at, str(reason), run.current_call())
    except Exception as error:
        step = recording.steps[run.at] if run.running else None
        if step is not None and (step.spec.is_move or step.spec.pointwise):
            return Divergence(run.at, _wrong_size(step), run.current_call())
        why = f"the forward depends on its size ({type(error).__name__}: {first_line(error)})"
        return Divergence(run.at, why, run.current_call() if run.running else None)
    return None if run.at >= run.end else Divergence(run.at, _ANOTHER_WAY)


class _Diverged(Exception):
    """Raised where the run leaves the record; carries the reason."""


class _Replay:
    """A run that compares each op with the recorded one."""

    def __init__(
        self,
        small: nn.Module,
        inputs: Inputs,
        recording: Recording,
        recorded: RecordedRun,
        sizes: Sizes,
        arguments: SizeArguments,
    ) -> None:
        self.tracer = Tracer(self, recording.meta, recording.shapes)
        self._sources = Sources(small, tree_leaves(inputs), self.tracer.tensor_map())
        self.at = recorded.start
        """Number of the step that runs or comes next."""
        self.running = False
        """Whether an op is under way."""
        self.stop = self.end = recorded.stop
        """Number of the step after the last, and after the last that has anything to do with channels."""
        if not recording.meta:  # what comes after the last channel may take sizes from values, which are others now
            touched = (i for i in reversed(range(self.at, self.stop)) if _is_touched(recording.steps[i], sizes))
            self.end = next(touched, self.at - 1) + 1
        self._steps, self._sizes, self._arguments = recording.steps, sizes, arguments
        self._current: tuple[object, object, object] = None, (), {}
        self._norms = {n.module for n in recording.norms}  # tried alone, numbers and all
        self._even: TensorMap[bool] = self.tracer.tensor_map()
        """Tensors of another size than recorded that are the same all along it → whether they are the same everywhere."""
        self._written: dict[int, torch.UntypedStorage] = {}
        """Memory of which that is no longer true; held, so that no other takes its place."""

    @property
    def over(self) -> bool:
        """Whether the rest of the run has nothing to do with channels."""
        return self.at >= self.end < self.stop

    def current_call(self) -> OpCall:
        """What the op that ran last was given."""
        func, args, kwargs = self._current
        shapes = [x.shape for x in tensors_among((args, kwargs))]
        return OpCall(func, scalars_among((args, kwargs)), shapes, self._sources.read)

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        """What modules are given shows in their ops."""

    def before(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> None:
        """Compares an op, and where its tensors come from, with the one that comes next in the record."""
        if self.over:
            return
        self._sources.before(tensors)
        spec = spec_of(func)
        if spec.layout_only:
            return
        self._current = func, args, kwargs
        if self.at == self.stop or spec.name != self._steps[self.at].name:
            # a slice that takes all there is does not run
            is_slice = self.at < self.stop and self._steps[self.at].spec.family is Family.SLICE
            raise _Diverged(_wrong_size(self._steps[self.at]) if is_slice else _ANOTHER_WAY)
        if self._sources.read != self._steps[self.at].sources:
            raise _Diverged(f"what {spec.name} reads depends on a size")
        if "group_norm" in spec.name:
            self._check_groups(self._steps[self.at], bind(func, args, kwargs))
        self.running = True

    def decided(self, func: AtenOp, out: object) -> object:
        """What the recorded run went on with, where that was decided by numbers."""
        step = None if self.over or spec_of(func).layout_only else self._steps[self.at]
        return out if step is None or step.decision is None else decided_as(step.decision, out)

    def visit(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
        """Compares what an op was given and has returned with the record."""
        if self.over:
            return
        spec = spec_of(func)
        if spec.layout_only:
            self._sources.after(tensors_among(out), None)
            if isinstance(out, Tensor) and out is not args[0] and args[0] in self._even:
                self._even[out] = self._even[args[0]]
            return
        self.running = False
        step = self._steps[self.at]
        even = self._stays_even(func, spec, args, kwargs, tensors)
        results = tensors_among(out)
        for x, (full, labels) in zip(results, step.outs, strict=True):
            self._check_shape(step, x, full, labels, even, args)
        self._check_numbers(step, func, args, kwargs)
        self._sources.after(results, self.at)
        self.at += 1

    def _check_shape(
        self, step: Step, x: Tensor, full: Shape, labels: ResultLabels, even: bool | None, args: Args
    ) -> None:
        """Compares the shape of a result with what its labels promise."""
        shape = tuple(x.shape)
        if shape != self._sizes.shape(full, labels) and 0 not in full:
            if labels is not None or even is None or len(shape) != len(full):
                raise _Diverged(_wrong_size(step))
            if step.spec.spreads and not _only_broadcasts(args[0], shape, full):
                raise _Diverged(_wrong_size(step))
            self._even[x] = even
        elif labels is not None and self._even and any([x is argument for argument in args]):
            self._written[storage_key(x)] = x.untyped_storage()

    def _check_numbers(self, step: Step, func: AtenOp, args: Args, kwargs: Kwargs) -> None:
        """Compares the numbers that an op was given with the recorded ones, but for sizes, which follow from labels."""
        if step.spec.family is Family.FACTORY:
            if step.bound().get("fill_value") != bind(func, args, kwargs).get("fill_value"):
                raise _Diverged(f"{step.name} with a number that depends on the size")
            return
        if step.module not in self._norms and step.scalars != scalars_among((args, kwargs)):
            own, now = step.bound(), bind(func, args, kwargs)
            compared = _NO_SIZES & own.keys() if step.spec.only_sizes else own.keys()
            if any(scalars_among(own.get(name)) != scalars_among(now.get(name)) for name in compared):
                raise _Diverged(f"{step.name} with a number that depends on the size")
        if not step.spec.only_sizes:
            return
        if step.spec.start:
            bound = bind(func, args, kwargs)
            for argument, rows in slice_starts(step, step.bound()):
                if bound.get(argument) not in (self._sizes.count(rows), None):
                    raise _Diverged(_wrong_size(step))

    def _check_groups(self, step: Step, bound: Kwargs) -> None:
        """Compares a number of groups with what is left of them, before the op refuses channels that it does not divide."""
        groups = bound.get("num_groups"), bound.get("group")
        if any(self._sizes.count(argument.rows) not in groups for argument in self._arguments.of(step)):
            raise _Diverged(f"{step.name} in a number of groups that is written down")

    def _stays_even(self, func: AtenOp, spec: OpSpec, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> bool | None:
        """What may be said of a result that has another size than recorded: True if it is the same everywhere, False if it
        is the same all along the dimensions that changed, None if it need not be.

        Raises `_Diverged` where something that may only be broadcast is used in another way.
        """
        if spec.family is Family.FACTORY:
            return True
        even: list[bool | None] = []
        if self._even:
            even = [None if storage_key(x) in self._written else self._even.get(x) for x in tensors]
        if all(e is None for e in even):
            return False if spec.spreads else None
        if spec.family is Family.SLICE:
            return all(e is True for e in even)
        if spec.name in ("gather", "take_along_dim") and even[0] is None:
            return None
        if spec.family is Family.SCATTER and even[-1] is None:
            return None
        if spec.family is Family.IDENTITY or spec.pointwise or spec.broadcast_safe:
            return all(e is True for e in even)
        if spec.family is Family.RELAYOUT and all(even):
            return True
        mask = bind(func, args, kwargs).get("attn_mask")
        if sum(e is not None for e in even) == (mask is not None and self._even.get(mask) is not None):
            return None
        raise _Diverged(_wrong_size(self._steps[self.at]))


def _is_touched(step: Step, sizes: Sizes) -> bool:
    """Whether anything that a step works on or makes loses labels."""
    return sizes.removes_any(step.entering) or any(sizes.removes_any(labels) for _, labels in step.outs)


def _only_broadcasts(x: Tensor, shape: Shape, full: Shape) -> bool:
    """Whether x is 1 long wherever what was made of it has another length than recorded."""
    sizes = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    return all(n == 1 or now == was for n, now, was in zip(sizes, shape, full, strict=True))


def _wrong_size(step: Step) -> str:
    if step.spec.family is Family.SLICE:
        return f"{step.name} at a fixed place among channels"
    given = step.spec.family is Family.FACTORY or size_arguments(step)
    return f"{step.name} " + ("to a size that is written down" if given else "of tensors whose sizes no longer agree")
