"""What a model does in training mode only: auxiliary heads, deep supervision, branches on ``self.training``.

A model whose code reads its mode runs once more, in training mode, beside the record of the run in evaluation mode. Where
it does the same, nothing is added. Where it does not, the run is recorded, too: its layers read and make the same channels,
so what either run ties is tied. Dropout and the batch statistics of norms are left in evaluation mode for that: they leave
channels apart, and what is dropped is no part of what is promised.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zerogate.errors import WatchError, class_and_line
from zerogate.groups.arguments import Args, AtenOp, Kwargs, scalars_among, tensors_among
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.ops import spec_of
from zerogate.groups.recording.kept_tensors import attach_kept_tensors
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.recorder import Recorder
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.recording.twin import originals_of, twin_of
from zerogate.modules.copies import quick_copy
from zerogate.modules.index import modules_by_name, named_tensors
from zerogate.modules.internals import DROPOUT, RUNNING_NORM, buffers_of, children_of, parameters_of
from zerogate.modules.mode_reads import reads_mode
from zerogate.modules.run import Inputs, call
from zerogate.modules.stated_sizes import SizesSet

_TOLD_MODE = ("batch_norm", "instance_norm", "dropout", "attention", "rrelu")
"""Parts of the names of ops that are told the mode."""


def with_training_run(model: nn.Module, inputs: Inputs, recording: Recording, label_inputs: bool) -> Recording:
    """The recording of a run in evaluation mode, with that of a run in training mode if that does other things.

    Of a model that does not run in training mode on the example inputs (it needs labels, say), or not twice in the same
    way, the record stays as it is, and its `Recording.unseen_training` says why.
    """
    if isinstance(model, GraphModel) or not reads_mode(model):
        return recording
    recording.idle = _idle_modules(model, recording)
    originals = originals_of(model)
    try:
        if _is_followed(_training_twin(model, recording), inputs, recording, originals):
            return recording
        further = recording.continued()
        twin = _training_twin(model, recording)
        recorder, sizes_set = Recorder(twin, inputs, label_inputs, further), SizesSet(twin)
        recorder.tracer.originals = originals
        with in_training_mode(twin, recording), torch.inference_mode(), recorder.tracer:
            returned = call(twin, recorder.inputs)
        attach_kept_tensors(twin, recorder)
        recorder.finish(further.choice(returned, training=True))
        further.set_by_forward |= sizes_set.names(twin)
        if _is_followed(_training_twin(model, further), inputs, further, originals):
            return further
        recording.unseen_training = "in training mode it does other things each time"
    except WatchError:
        raise
    except Exception as error:
        recording.unseen_training = f"in training mode it fails on the example inputs ({class_and_line(error)})"
    return recording


@contextmanager
def in_training_mode(twin: nn.Module, recording: Recording) -> Iterator[None]:
    """Puts a copy of the model into training mode for a run: all but dropout and norms with running statistics, whether
    torch's own or what else does nothing in evaluation mode and holds nothing."""
    twin.train()
    for name, module in modules_by_name(twin).items():
        if isinstance(module, (DROPOUT, RUNNING_NORM)) or name in recording.idle:
            module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checkpoints, which miss the gradients
        yield


def _idle_modules(model: nn.Module, recording: Recording) -> set[str]:
    """Modules that hold nothing and have done nothing when they were called in evaluation mode: dropout of any kind."""
    busy = {step.module for step in recording.steps}
    modules = modules_by_name(model)
    called = [(name, modules[name]) for name in recording.module_inputs if name not in busy and name in modules]
    return {name for name, m in called if not (children_of(m) or parameters_of(m) or buffers_of(m))}


def _training_twin(model: nn.Module, recording: Recording) -> nn.Module:
    """A copy to run in training mode; what a run may write to is its own."""
    if recording.twin is None:
        return twin_of(model, meta=False)
    return quick_copy(recording.twin, {id(x): x for _, x in named_tensors(recording.twin) if x.is_meta})


def _is_followed(twin: nn.Module, inputs: Inputs, recording: Recording, originals: dict[int, str]) -> bool:
    """Whether a copy does in training mode what the last recorded run did."""
    run, inputs = _Beside(twin, recording), recording.prepared(inputs)
    run.tracer.originals = originals
    try:
        with in_training_mode(twin, recording), torch.inference_mode(), run.tracer:
            returned = call(twin, inputs)
    except _Differs:
        return False
    outputs = recording.choice(returned, training=True)
    return run.at == recording.runs[-1].stop and [x.shape for x in outputs] == recording.runs[-1].outputs


class _Differs(Exception):
    """Raised where a run does other things than the recorded one."""


class _Beside:
    """Listens to a run and compares each op with the one of the last recorded run."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self.tracer = Tracer(self, recording.meta, recording.shapes)
        self.tracer.follow(model)
        self.at = recording.runs[-1].start
        """Number of the step that comes next."""
        self._steps, self._read = recording.steps, recording.read
        self._names = {id(tensor): name for name, tensor in named_tensors(model)}

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        """What modules are given shows in their ops."""

    def before(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> None:
        """Compares an op with the one that comes next in the record."""
        spec = spec_of(func)
        if not spec.layout_only:
            step = self._steps[self.at] if self.at < len(self._steps) else None
            if step is None or spec.name != step.name or self.tracer.module != step.module:
                raise _Differs

    def decided(self, func: AtenOp, out: object) -> object:
        """Nothing is decided for it."""
        return out

    def visit(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
        """Compares what the op was given and has returned."""
        spec = spec_of(func)
        if spec.layout_only:
            return
        step = self._steps[self.at]
        told_mode = any(part in step.name for part in _TOLD_MODE)
        if not (told_mode or scalars_among((args, kwargs)) == step.scalars):
            raise _Differs
        if [tuple(x.shape) for x in tensors_among(out)] != [shape for shape, _ in step.outs]:
            raise _Differs
        if any(self._names.get(id(x)) not in self._read for x in tensors if id(x) in self._names):
            raise _Differs
        self.at += 1
