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


def _convolution(layer: Any, shape: torch.Size) -> Sizes:
    if layer.transposed:  # its weight is [in, out / groups, *kernel]
        return {"in_channels": shape[0], "out_channels": shape[1] * layer.groups}
    sizes = {"in_channels": shape[1] * layer.groups, "out_channels": shape[0]}  # [out, in / groups, *kernel]
    return sizes | {"kernel_size": tuple(shape[2:])}  # which may cover channels


LAYER_SIZES: dict[type[nn.Module], Callable[[Any, torch.Size], Sizes]] = {
    CONVOLUTION: _convolution,
    nn.Linear: lambda _, shape: {"in_features": shape[1], "out_features": shape[0]},
    nn.Bilinear: lambda _, shape: {"in1_features": shape[1], "in2_features": shape[2], "out_features": shape[0]},
    nn.Embedding: lambda _, shape: {"embedding_dim": shape[1]},
    nn.EmbeddingBag: lambda _, shape: {"embedding_dim": shape[1]},
    RUNNING_NORM: lambda _, shape: {"num_features": shape[0]},
    nn.LayerNorm: lambda _, shape: {"normalized_shape": tuple(shape)},
    nn.RMSNorm: lambda _, shape: {"normalized_shape": tuple(shape)},
    nn.GroupNorm: lambda _, shape: {"num_channels": shape[0]},
    nn.PReLU: lambda _, shape: {"num_parameters": shape[0]},
}
"""Class, subclasses included → what a layer states, from the layer and the shape of its weight."""


def state_sizes(layer: nn.Module) -> None:
    """Makes a layer of the table state the sizes that its tensors have; others are left as they are.

    Raises `ZerogateError` for a layer of the table that holds no tensor from which its sizes follow.
    """
    sizes = next((sizes for kind, sizes in LAYER_SIZES.items() if isinstance(layer, kind)), None)
    if sizes is not None:
        for attribute, size in sizes(layer, _shape(layer)).items():
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
