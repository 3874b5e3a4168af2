"""Random open probabilities, and the distribution of how many events happen, the long way."""

from __future__ import annotations

import torch
from torch import Tensor


def one_by_one(p: Tensor) -> Tensor:
    """P(N = k) of every row, event after event: O(width²)."""
    found = torch.zeros(p.shape[0], p.shape[1] + 1, dtype=torch.float64)
    found[:, 0] = 1
    for q in p.unbind(1):
        shifted = torch.cat([torch.zeros(p.shape[0], 1, dtype=torch.float64), found[:, :-1]], 1)
        found = found * (1 - q)[:, None] + shifted * q[:, None]
    return found


def random_probabilities(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Among them many at 0, at 1 and near both, as trained gates have."""
    p = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, p, torch.sigmoid(60 * p - 30).round(decimals=6))
