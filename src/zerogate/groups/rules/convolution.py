"""Convolutions, also transposed and in groups.

The labels of the input channels are consumed and the weight makes new ones. In groups of few channels, all channels of one
group, in and out, are one unit, which passes through. In groups of many channels, those at one place of all groups are tied,
so that the groups stay equally wide.
"""

from __future__ import annotations

import math

from zerogate.groups.label_tensors import varying_dims
from zerogate.groups.rules.contraction import entering_channels
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze

_MIXED_GROUPS = "convolution in groups over channels and constants"


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def _convolution(op: Op) -> Out:
    x, weight, bias, groups = op.bound["input"], op.bound["weight"], op.bound.get("bias"), op.bound["groups"]
    transposed = "transpose" in op.name or bool(op.bound.get("transposed"))
    spatial = weight.ndim - 2
    channel_dim = -spatial - 1
    inputs, outputs = x.shape[channel_dim], op.out.shape[channel_dim]
    positions = (x if transposed else op.out).numel() / (inputs if transposed else outputs)
    macs = positions * math.prod(weight.shape[2:])
    labels = op.labels(x)
    vary = [] if labels is None else [d - x.ndim for d in varying_dims(labels)]
    if channel_dim not in vary and any(d > channel_dim for d in vary):
        raise Freeze(f"{op.name} over channels")
    vector = entering_channels(op, x, channel_dim)
    dims = (0, 1) if transposed else (1, 0)
    any_free = vector is not None and bool(vector.any())
    few_in_each = groups * groups >= inputs
    if groups == 1:
        new = op.context.record_layer(weight, bias, entering=vector, dims=dims, macs=macs, channel_dim=channel_dim)
    elif transposed and not (any_free and groups == inputs == outputs):
        op.context.record_layer(weight, None, entering=None, dims=(None, None), macs=macs * inputs * outputs / groups)
        if groups == inputs == outputs:
            return None
        raise Freeze(f"transposed convolution in {groups} groups")
    elif vector is not None and any_free and few_in_each:  # all of one group are one unit
        vector = op.context.tie_rows(vector.view(groups, -1), _MIXED_GROUPS)
        op.context.state_size("groups", groups, vector[:, None])
        vector = vector.repeat_interleave(outputs // groups)
        new = op.context.record_grouped_conv(weight, bias, vector, macs * (inputs // groups), channel_dim)
    else:  # those at one place of all groups are tied
        if vector is not None:
            vector = op.context.tie_rows(vector.view(groups, -1).T, _MIXED_GROUPS)
        new = op.context.record_layer(
            weight, bias, entering=vector, dims=dims, macs=macs, channel_dim=channel_dim, repeats=groups
        )
    if new is None:
        return None
    return new.view(-1, *[1] * spatial).expand(op.out.shape)
