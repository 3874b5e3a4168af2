"""Gates that do not learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zerogate.checks import check
from zerogate.gates.gate import Gate


class FixedGate(Gate):
    """Gates that stay as they are: z = scale where the logit is positive, else exactly 0, in training and evaluation.

    The weights that closed gates multiply are set to zero after every optimizer step, so they are exactly zero under any
    optimizer. What a ticket is trained with; see `Sparsified.harden`.

    Args:
        scale: of open gates, above 0.

    Raises `ZerogateError` for another scale.
    """

    learns = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        check(math.isfinite(scale) and scale > 0, "the scale of open gates", "positive and finite", scale)
        self.scale = scale

    def initial_logits(self, units: int) -> Tensor:
        return torch.ones(units)

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        z = self.mask(logits)
        return z if examples is None else z.expand(examples, -1)

    def mask(self, logits: Tensor) -> Tensor:
        z = (logits > 0).to(logits.dtype)
        return z if self.scale == 1 else z * self.scale

    def open_probability(self, logits: Tensor) -> Tensor:
        return (logits > 0).to(logits.dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"
