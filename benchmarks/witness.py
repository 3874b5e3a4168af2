"""An independent count of MACs: torch's counter of floating-point operations, by op."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from exactness import call
from zerogate.modules.run import tensors_of

LAYERS = ("convolution", "mm", "addmm", "_grouped_mm")
"""Ops of layers: convolutions, and matrices with one of a batch, which is a parameter in nearly every network. Products of
two batches (bmm, baddbmm) are those of attention, which has no weights."""


def _grouped_mm(a: list[int], b: list[int], *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Each row of a [rows, inner] is multiplied with one of the matrices b [matrices, inner, columns]."""
    return 2 * a[-2] * a[-1] * b[-1]


ADDED: dict[Any, Any] = {torch.ops.aten._grouped_mm: _grouped_mm}
"""What the counter does not know, with the number of its operations."""


def macs_by_op(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Half of the operations that the counter sees in a forward in evaluation mode, for one example, by the op's name."""
    model.eval()  # with gradients: without them attention runs as one op that the counter does not know
    with FlopCounterMode(display=False, custom_mapping=ADDED) as counter:
        call(model, inputs)
    batch = tensors_of(inputs)[0].shape[0]
    return {op.__name__: flops / 2 / batch for op, flops in counter.get_flop_counts()["Global"].items()}


def agreement(macs: int, counted: dict[str, float]) -> dict[str, Any]:
    """Our count beside the witness's: whether both are equal, else by how much they differ and which ops the witness saw.

    They are also equal where exactly some of the products of two batches are among ours: of weights that a forward has
    brought into a batch's form, such as experts."""
    layers = sum(count for op, count in counted.items() if op in LAYERS)
    others = {op: count for op, count in counted.items() if op not in LAYERS}
    sums = [layers, *(layers + count for count in others.values()), layers + sum(others.values())]
    if any(abs(macs - total) <= 1 for total in sums):  # rounded where the batch is no batch, as in a detector
        return {"macs": macs, "equal": True}
    return {"macs": macs, "equal": False, "ops": {op: round(count) for op, count in counted.items()}}
