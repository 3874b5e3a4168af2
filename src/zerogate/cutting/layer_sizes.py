"""What torch's own layers state about the sizes of their tensors: one table, class → attributes.

torch computes with the tensors and not with these numbers, mostly; but they are printed, read by other libraries, and
checked by some forwards. A layer of another class states its sizes as the structure says (`Plan.attributes`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.modules.internals import CONVOLUTION, RUNNING_NORM, buffers_of, parameters_of

Sizes = dict[str, int | tuple[int, ...]]
"""Attribute → what it states."""


def _convolution(layer: Any) -> Sizes:
    shape = _shape(layer)
    if layer.transposed:  # its weight is [in, out / groups, *kernel]
        return {"in_channels": shape[0], "out_channels": shape[1] * layer.groups}
    sizes = {"in_channels": shape[1] * layer.groups, "out_channels": shape[0]}  # [out, in / groups, *kernel]
    return sizes | {"kernel_size": tuple(shape[2:])}  # which may cover channels


def _recurrent(layer: Any) -> Sizes:
    """All layers and directions are equally wide."""
    rows, width = layer.weight_hh_l0.shape
    sizes = {"input_size": layer.weight_ih_l0.shape[1], "hidden_size": width}
    return {**sizes, "hidden_size": rows // 4, "proj_size": width} if layer.proj_size else {**sizes}


LAYER_SIZES: dict[type[nn.Module], Callable[[Any], Sizes]] = {
    CONVOLUTION: _convolution,
    nn.Linear: lambda layer: {"in_features": _shape(layer)[1], "out_features": _shape(layer)[0]},
    nn.Bilinear: lambda layer: dict(zip(("out_features", "in1_features", "in2_features"), _shape(layer), strict=True)),
    nn.EmbeddingBag: lambda layer: {"embedding_dim": _shape(layer)[1]},
    nn.Embedding: lambda layer: {"embedding_dim": _shape(layer)[1]},
    RUNNING_NORM: lambda layer: {"num_features": _shape(layer)[0]},
    nn.LayerNorm: lambda layer: {"normalized_shape": tuple(_shape(layer))},
    nn.RMSNorm: lambda layer: {"normalized_shape": tuple(_shape(layer))},
    nn.GroupNorm: lambda layer: {"num_channels": _shape(layer)[0]},
    nn.PReLU: lambda layer: {"num_parameters": _shape(layer)[0]},
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: lambda layer: {"input_size": layer.weight_ih.shape[1], "hidden_size": layer.weight_hh.shape[1]},
}
"""Class, subclasses included → what a layer states, from the tensors that it holds."""


def state_sizes(layer: nn.Module) -> None:
    """Makes a layer of the table state the sizes that its tensors have; others are left as they are.

    Raises `ZerogateError` for a layer of the table that holds no tensor from which its sizes follow.
    """
    sizes = next((sizes for kind, sizes in LAYER_SIZES.items() if isinstance(layer, kind)), None)
    if sizes is not None:
        for attribute, size in sizes(layer).items():
            setattr(layer, attribute, size)


def _shape(layer: nn.Module) -> torch.Size:
    """Of the weight; of a norm with running statistics and no weight, of these; where the weight is computed, of the largest
    parameter that it is computed from."""
    weight = parameters_of(layer).get("weight")
    tensor = buffers_of(layer).get("running_mean") if weight is None else weight
    if tensor is None:
        tensor = max((p for p in layer.parameters() if p.ndim > 1), key=Tensor.numel, default=None)
    if tensor is None:
        raise ZerogateError(f"this {type(layer).__name__} holds no weight of its own to take its sizes from")
    return tensor.shape
