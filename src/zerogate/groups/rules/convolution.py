"""Convolutions, also transposed and in groups.

The labels of the input channels are consumed and the weight makes new ones. In groups of few channels, all channels of one
group, in and out, are one unit, which passes through. In groups of many channels, those at one place of all groups are tied,
so that the groups stay equally wide.

Labels along places pass a kernel that is 1 long there, and are consumed by one as long as all of them, as in a TextCNN. A
window that moves along them mixes neighbours, which others would be if any were gone: they stay.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from zerogate.groups.label_tensors import Sheets, varying_dims
from zerogate.groups.rules.layers import Layer, read_sheets
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze

_MIXED_GROUPS = "convolution in groups over channels and constants"


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def _convolution(op: Op) -> Out:
    call = _Call(op)
    sheets = call.sheets()
    if call.groups == 1:
        return call.read(sheets)
    if len(sheets) > 1 or any(call.channel_dim + call.x.ndim not in varying_dims(s) for s in sheets if varying_dims(s)):
        raise Freeze(f"{op.name} in groups, of channels along several dimensions")
    few_in_each = call.groups * call.groups >= call.inputs
    if sheets and bool(sheets[0].any()) and few_in_each:
        return call.in_narrow_groups(sheets[0])
    return call.in_wide_groups(sheets)


class _Call:
    """One convolution."""

    def __init__(self, op: Op) -> None:
        self.op, bound = op, op.bound
        self.x: Tensor = bound["input"]
        self.weight: Tensor = bound["weight"]
        self.bias: Tensor | None = bound.get("bias")
        self.groups: int = bound["groups"]
        self.transposed = "transpose" in op.name or bool(bound.get("transposed"))
        self.spatial = self.weight.ndim - 2
        self.channel_dim = -self.spatial - 1
        self.inputs, self.outputs = self.x.shape[self.channel_dim], op.out.shape[self.channel_dim]
        positions = (self.x if self.transposed else op.out).numel() / (self.inputs if self.transposed else self.outputs)
        self.macs = positions * math.prod(self.weight.shape[2:])
        """Per input and output channel that meet."""
        self.dims = (0, 1) if self.transposed else (1, 0)

    def sheets(self) -> list[Tensor]:
        """Labels of the input, without those that stay."""
        op, sheets = self.op, self.op.sheets_read(self.x, self.channel_dim)
        if op.labels(self.weight) is not None:
            raise Freeze(f"{op.name} with a weight that a layer has made")
        followed = []
        for s in sheets:
            vary = [d - self.x.ndim for d in varying_dims(s)]
            apart = all(self._passes(d) for d in vary if d > self.channel_dim)
            if apart or self.channel_dim in vary or self._consumed(s) is not None:
                followed.append(s)
            else:
                op.context.freeze(s, f"{op.name} in a window that moves over channels")
        return followed

    def _along(self, argument: str, dim: int) -> Any:
        """What the call states for a spatial dimension, counted from the end."""
        value = self.op.bound.get(argument, 0)
        if isinstance(value, (list, tuple)):
            return value[dim] if len(value) > 1 else value[0]
        return value

    def _passes(self, dim: int) -> bool:
        """Whether places along a dimension stay apart, each where it was."""
        padding = self._along("padding", dim)
        return (
            self.weight.shape[dim] == 1
            and self._along("stride", dim) == 1
            and (padding in (0, "same", "valid"))
            and self._along("output_padding", dim) == 0
        )

    def _consumed(self, labels: Tensor) -> int | None:
        """The dimension, counted from the end, all places of which the kernel sums up, where the labels vary along it alone;
        else None."""
        vary = [d - labels.ndim for d in varying_dims(labels)]
        if len(vary) != 1 or vary[0] <= self.channel_dim or self.transposed or self.groups > 1:
            return None
        (dim,) = vary
        whole = self.weight.shape[dim] == self.x.shape[dim] and self.op.out.shape[dim] == 1
        return (
            dim if whole and self._along("padding", dim) in (0, "valid") and self._along("dilation", dim) == 1 else None
        )

    def read(self, sheets: list[Tensor]) -> Out:
        """A convolution in a single group: of channels, or of places that its kernel covers."""
        for s in sheets:
            dim = self._consumed(s)
            if dim is None or self.weight.shape[dim] == 1:
                continue
            others = [t for t in sheets if t is not s]
            if any(self.channel_dim + self.x.ndim in varying_dims(t) for t in others):
                self.op.context.freeze(s, f"{self.op.name} over channels along two dimensions")
                sheets = others
                continue
            return self._read_places(sheets, dim)
        layer = Layer(self.weight, self.bias, self.dims, self.channel_dim, self.channel_dim, self.macs)
        return read_sheets(self.op, sheets, self.x.ndim, layer, tuple(self.op.out.shape))

    def _read_places(self, sheets: list[Tensor], dim: int) -> Out:
        """A convolution whose kernel sums up channels that lie along a spatial dimension."""
        macs = self.macs * self.inputs / self.weight.shape[dim]
        layer = Layer(self.weight, self.bias, (self.weight.ndim + dim, 0), dim, self.channel_dim, macs)
        sheets = [s.narrow(self.channel_dim, 0, 1) for s in sheets]
        return read_sheets(self.op, sheets, self.x.ndim, layer, tuple(self.op.out.shape))

    def in_narrow_groups(self, labels: Tensor) -> Out:
        """All channels of one group, in and out, are one unit."""
        op, groups = self.op, self.groups
        vector = op.context.tie_rows(op.channels(labels, self.channel_dim).view(groups, -1), _MIXED_GROUPS)
        op.context.state_size("groups", groups, vector[:, None])
        each = self.inputs // groups
        if (
            self.transposed
        ):  # its weight is [in, out / groups, ...]: sliced along the inputs, its bias along the outputs
            made = vector.repeat_interleave(self.outputs // groups)
            entering = vector.repeat_interleave(each)
            macs = self.macs * (self.outputs // groups)
            if op.context.record_grouped_conv(self.weight, None, entering, macs, self.channel_dim) is None:
                return None
            if self.bias is not None:
                op.context.attach(self.bias, 0, made)
            return self._along_channels(made)
        vector = vector.repeat_interleave(self.outputs // groups)
        return self._along_channels(
            op.context.record_grouped_conv(self.weight, self.bias, vector, self.macs * each, self.channel_dim)
        )

    def in_wide_groups(self, sheets: list[Tensor]) -> Out:
        """Channels at one place of all groups are tied."""
        op, groups = self.op, self.groups
        vector = None
        if sheets:
            rows = op.channels(sheets[0], self.channel_dim).view(groups, -1).T
            vector = op.context.tie_rows(rows, _MIXED_GROUPS)
        if self.transposed:
            if vector is not None:
                vector = vector.repeat(groups)
            return self._transposed_in_wide_groups(vector)
        new = op.context.record_layer(
            self.weight,
            self.bias,
            entering=vector,
            dims=self.dims,
            macs=self.macs,
            channel_dim=self.channel_dim,
            repeats=groups,
        )
        return self._along_channels(new)

    def _transposed_in_wide_groups(self, vector: Tensor | None) -> Out:
        """The weight is [in, out / groups, ...]: it holds each place of the inputs once for every group, and each place of
        the outputs once."""
        op, groups = self.op, self.groups
        new = op.context.record_layer(
            self.weight, None, entering=vector, dims=(0, 1), macs=self.macs, channel_dim=self.channel_dim
        )
        if new is None:
            return None
        made = new.repeat(groups)
        if self.bias is not None:
            op.context.attach(self.bias, 0, made)
        return self._along_channels(made)

    def _along_channels(self, vector: Tensor | None) -> Out:
        return None if vector is None else Sheets([vector.view(-1, *[1] * self.spatial).expand(self.op.out.shape)])
