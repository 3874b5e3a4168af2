"""Surrogate gradients: the value of one function with the derivative of a gentler one."""

from __future__ import annotations

import torch
from torch import Tensor


def gentle_slope(x: Tensor, slope: Tensor | float) -> Tensor:
    """min(slope, 2 / mean|x|), 0-dim: no steeper than the spread of x, [units], allows. At slope · x = 20 the derivative
    of σ(slope · x) is 0 in float32, and nothing could move that gate any more."""
    steepest = x.detach().norm(1).reciprocal() * (2 * len(x))
    return torch.clamp(steepest, max=slope)


def gentle_sigmoid(x: Tensor, slope: Tensor | float) -> Tensor:
    """σ(k·x) with k = `gentle_slope`, [units]."""
    return torch.sigmoid(gentle_slope(x, slope) * x)


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, with the gradient of the surrogate."""
    return surrogate + (value - surrogate).detach()
