"""Norms: what is normalised together cannot shrink, so it is tied.

A norm over each head leaves heads free, a norm in groups of channels leaves those groups free. Where all channels are
normalised together, nothing would be left; such a norm is taken over the channels that are kept, if the module that runs it
allows that (`groups.norms`). Scales, shifts and running statistics are sliced with the channels.
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import collapse, varying_dims
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def _batch_norm(op: Op) -> Out:
    """Each channel by itself."""
    labels = op.labels(op.bound["input"])
    if labels is None:
        return None
    vector = op.channels(labels, 1)
    if op.bound.get("weight") is None and op.bound.get("running_mean") is None:
        op.context.state_size("num_features", len(vector), vector[:, None])
    _attach(op, vector, "weight", "bias", "running_mean", "running_var")
    return op.first_result(_along_channels(vector, labels))


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def _layer_norm(op: Op) -> Out:
    """Over the last dimensions."""
    x = op.bound["input"]
    labels = op.labels(x)
    over = {x.ndim - 1 - i for i in range(len(op.bound["normalized_shape"]))}
    if labels is None and op.views(x):
        labels = op.context.make_channels(x, over)
    if labels is None:
        labels = op.context.constant_channels(x, over)
    if labels is None or not varying_dims(labels):
        return None
    vary = set(varying_dims(labels))
    if vary & over and not vary - over:
        _over_kept(op, labels)
        if len(over) == 1 and op.bound.get("weight") is None:
            rows = op.channels(labels, -1)[:, None]
            op.context.state_size("normalized_shape", tuple(op.bound["normalized_shape"]), rows)
        for name in ("weight", "bias"):
            parameter = op.bound.get(name)
            if parameter is not None:
                if not op.views(parameter):
                    raise Freeze(f"{op.name} over channels with a computed {name}")
                for view in op.views(parameter):
                    op.context.attach_view(view, labels[(0,) * (labels.ndim - parameter.ndim)])
    else:
        labels = op.tie_along(labels, over)
    return op.first_result(labels)


@rule("group_norm", "native_group_norm")
def _group_norm(op: Op) -> Out:
    """In groups of channels, each of which becomes a unit; in a single group, over the channels that are kept."""
    labels = op.labels(op.bound["input"])
    if labels is None:
        return None
    groups: int = op.bound["num_groups" if "num_groups" in op.bound else "group"]
    vector = op.channels(labels, 1)
    if not vector.any():
        return None
    if op.bound.get("weight") is None:
        op.context.state_size("num_channels", len(vector), vector[:, None])
    if groups == 1 and len(vector) > 1:
        _over_kept(op, labels)
    else:
        vector = op.context.tie_rows(vector.view(groups, -1), "group_norm over channels and constants")
        op.context.state_size("num_groups", groups, vector[:, None])
        vector = vector.repeat_interleave(labels.shape[1] // groups)
        labels = _along_channels(vector, labels)
    _attach(op, vector, "weight", "bias")
    return op.first_result(labels)


@rule("cosine_similarity")
def _cosine_similarity(op: Op) -> Out:
    raise Freeze("cosine_similarity over channels")


@rule("_weight_norm", "_weight_norm_interface")
def _weight_norm(op: Op) -> Out:
    raise Freeze("weight normalisation")


def _attach(op: Op, vector: Tensor, *names: str) -> None:
    """Slices these operands, where they are given, with the channels."""
    for name in names:
        if op.bound.get(name) is not None:
            op.context.attach(op.bound[name], 0, vector)


def _along_channels(vector: Tensor, labels: Tensor) -> Tensor:
    """A vector of labels along dimension 1 of an activation of the shape of these labels."""
    return collapse(vector.view(1, -1, *[1] * (labels.ndim - 2)).expand(labels.shape))


def _over_kept(op: Op, labels: Tensor) -> None:
    if not op.context.record_norm(labels):
        raise Freeze(f"{op.name} over channels")
