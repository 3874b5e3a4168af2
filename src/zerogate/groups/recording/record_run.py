"""Runs copies of the model and follows the label of every channel through them: in evaluation mode, and in training mode
where that does other things.

Copies run in inference mode: there ATen ops arrive whole (``linear``, ``batch_norm``, ``flatten``) rather than in
pieces, and whatever the run changes is changed in the copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from zerogate.errors import WatchError, first_line
from zerogate.groups.recording.kept_tensors import attach_kept_tensors
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.recorder import Recorder
from zerogate.groups.recording.training_run import with_training_run
from zerogate.groups.recording.twin import originals_of, twin_of
from zerogate.modules.copies import quick_copy
from zerogate.modules.index import named_tensors
from zerogate.modules.outputs import ALL_OUTPUTS, OutputChoice
from zerogate.modules.run import Inputs, call, kept_rng, tensors_of
from zerogate.modules.stated_sizes import SizesSet


def watch(
    model: nn.Module, inputs: Inputs, *, label_inputs: bool = False, choice: OutputChoice = ALL_OUTPUTS
) -> Recording:
    """Runs copies of the model on example inputs and returns what they show.

    Raises `WatchError` when the model cannot be copied, rejects the inputs, or returns no tensor.
    """
    _check_inputs(model, inputs)
    inputs = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
    with kept_rng(model):
        try:
            recording = _record(model, inputs, label_inputs, choice, meta=True)
        except Exception:  # it asked for data, or uses an op that has no shape-only version
            try:
                recording = _record(model, inputs, label_inputs, choice, meta=False)
            except WatchError:
                raise
            except Exception as error:
                raise WatchError(
                    f"{type(model).__name__}{_dtypes(model)} does not run on the example inputs ({_describe(inputs)}): "
                    f"{type(error).__name__}: {first_line(error)}; pass inputs as the model's forward takes them "
                    "(a tensor, a tuple of positional or a dict of keyword arguments)"
                ) from error
        return with_training_run(model, inputs, recording, label_inputs)


def _record(model: nn.Module, inputs: Inputs, label_inputs: bool, choice: OutputChoice, meta: bool) -> Recording:
    twin = twin_of(model, meta)
    untouched = quick_copy(twin, {id(x): x for _, x in named_tensors(twin)}) if meta else None
    recorder, sizes_set = Recorder(twin, inputs, label_inputs, Recording(meta=meta, choice=choice)), SizesSet(twin)
    recorder.tracer.originals = originals_of(model)
    with torch.inference_mode(), recorder.tracer:
        returned = call(twin, recorder.inputs)
    if not tensors_of(returned):
        raise WatchError(
            f"{type(model).__name__} returns no tensor (also not in a tuple, list, dict or dataclass); "
            "give zerogate the module whose outputs matter"
        )
    attach_kept_tensors(twin, recorder)
    recorder.finish(choice(returned))
    recording = recorder.recording
    recording.twin, recording.set_by_forward = untouched, sizes_set.names(twin)
    return recording


def _check_inputs(model: nn.Module, inputs: Inputs) -> None:
    devices = {p.device for p in model.parameters() if not p.is_meta}  # else it can be materialised anywhere
    for name, tensor in named_tensors(model):
        if is_lazy(tensor):
            raise WatchError(
                f"{name} of this {type(model).__name__} has no shape yet; run the model once on the example inputs first"
            )
    for x in tree_leaves(inputs):
        if isinstance(x, Tensor) and not x.numel():
            raise WatchError(f"the example inputs are empty: {_describe(inputs)}; give at least one example")
        if isinstance(x, Tensor) and devices and x.device not in devices:
            there = ", ".join(sorted(map(str, devices)))
            raise WatchError(
                f"the example inputs are on {x.device} and the {type(model).__name__} on {there}; "
                f"move them: inputs.to({there.split(', ')[0]!r})"
            )


def _dtypes(model: nn.Module) -> str:
    dtypes = sorted({str(p.dtype) for p in model.parameters()})
    return f" ({', '.join(dtypes)})" if dtypes else ""


def _describe(inputs: Inputs) -> str:
    shown = [f"{tuple(x.shape)} {x.dtype} {x.device}" for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    return ", ".join(shown) or f"a {type(inputs).__name__} without tensors"
