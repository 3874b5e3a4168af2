"""What all layers do to labels: a sum over channels of a product with a parameter.

Labels along the dimension that is summed are consumed, and the parameter makes new ones. Labels along other dimensions pass:
a layer along positions leaves channels apart, and what it makes is a further sheet of labels beside them.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from zerogate.groups.label_tensors import Sheets, any_in, collapse, drop_expanded, varying_dims
from zerogate.groups.rules.op import Op


class Layer(NamedTuple):
    """How a layer reads its input.

    Attributes:
        weight, bias: its parameters, or views of them.
        dims: dimensions of the weight along which it consumes and produces.
        channel_dim: where the input has the channels that are summed, counted from the end.
        place: where the result has its channels, counted from the end; None where it has none.
        macs: per consumed and produced channel, for the whole batch.
        repeats: groups of channels; those at one place of all groups are tied.
    """

    weight: Tensor
    bias: Tensor | None
    dims: tuple[int | None, int | None]
    channel_dim: int
    place: int | None
    macs: float
    repeats: int = 1


def read_channels(op: Op, x: Tensor, layer: Layer, shape: tuple[int, ...] = ()) -> Sheets:
    """Records a layer that reads x and returns the labels of its result.

    Args:
        shape: of the result, where that is not what the op returns. Its dimensions are those of x, but for the one that is
            summed, which is 1 long, is where new channels are, or has gone.
    """
    shape = shape or tuple(op.out.shape)
    return read_sheets(op, op.sheets_read(x, layer.channel_dim), x.ndim, layer, shape)


def read_sheets(op: Op, sheets: list[Tensor], ndim: int, layer: Layer, shape: tuple[int, ...]) -> Sheets:
    """`read_channels` of an input with these sheets of labels, which has ``ndim`` dimensions."""
    dim = layer.channel_dim % ndim
    passing = [s for s in sheets if (vary := varying_dims(s)) and dim not in vary]
    over = [s for s in sheets if dim in varying_dims(s)] or [s for s in sheets if not varying_dims(s) and any_in(s)]
    for s in [*passing[1:], *over[1:]]:
        op.context.freeze(s, f"{op.name} of channels along three dimensions")
    passing, over = passing[:1], over[:1]
    new = op.context.record_layer(
        layer.weight,
        layer.bias,
        entering=op.channels(over[0], dim) if over else None,
        dims=layer.dims,
        macs=layer.macs,
        channel_dim=layer.channel_dim,
        repeats=layer.repeats,
    )
    out: list[Tensor] = []
    for s in passing:
        op.context.record_repeats(s)
        (s,) = drop_expanded(s)
        out.append(collapse((s.squeeze(dim) if len(shape) < ndim else s).expand(shape)))
    if new is not None and layer.place is not None:
        out.append(new.view(-1, *[1] * (-layer.place - 1)).expand(shape))
    return Sheets(out)


def record_macs(op: Op) -> None:
    """Records what a layer costs that could not be followed: it still runs. Of products, those with a parameter are
    layers; convolutions and linear layers are, whatever has made their weight."""
    operands = [x for x in op.tensors if len(views := op.views(x)) == 1 and views[0].is_whole and x.ndim > 1]
    if "conv" in op.name or op.name == "linear":
        operands = [op.bound["weight"]]
    if not operands:
        return
    weight, out = operands[0], op.results[0]
    if "conv" in op.name:
        x = op.bound["input"]
        entries = x.numel() if "transpose" in op.name or op.bound.get("transposed") else out.numel()
        macs = entries * weight.numel() // weight.shape[0]
    elif op.name == "linear":
        macs = out.numel() * weight.shape[-1]
    elif op.name in ("matmul", "mm", "bmm", "addmm", "baddbmm"):
        macs = out.numel() * weight.shape[-2 if weight is op.tensors[-1] else -1]
    else:
        return
    op.context.record_layer(weight, None, entering=None, dims=(None, None), macs=macs, channel_dim=-1)
