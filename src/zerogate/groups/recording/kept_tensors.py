"""Tensors that a forward leaves in its modules: caches that it makes once, activations kept for later.

When the model is cut after it has run, they are cut with the channels that they hold.
"""

from __future__ import annotations

from torch import nn

from zerogate.groups.label_tensors import collapse, rows_along, varying_dims
from zerogate.groups.recording.recorder import Recorder
from zerogate.modules.unregistered import plain_places, tensor_at


def attach_kept_tensors(model: nn.Module, recorder: Recorder) -> None:
    """Enters in the recording which dimensions of the tensors that a run has left in the model hold channels.

    Those that hold channels along several dimensions keep these.
    """
    recording = recorder.recording
    for name, places in plain_places(model).items():
        x = tensor_at(model, places[0])
        labels = None if x is None else recorder.labels_of(x)
        if x is not None and labels is None:
            labels = recorder.constants.met_by(x)
        if x is None or labels is None or not labels.any():
            continue
        recording.places.setdefault(name, places)
        labels = collapse(labels)
        dims = varying_dims(labels)
        if len(dims) == 1:
            recording.attach(name, dims[0], rows_along(labels, dims[0])[:, 0])
        else:
            recording.labels.freeze(labels, f"channels in several dimensions of {name}, which the forward keeps")
