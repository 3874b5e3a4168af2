"""Magnitudes of units, by which a pruner chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zerogate.masking.placement import Placement
from zerogate.structure import Group


@torch.no_grad()
def magnitudes(
    weights: Mapping[str, Tensor], placements: Sequence[Placement], units: int, relative_to: Sequence[Group] = ()
) -> Tensor:
    """Score of every unit, float32 [units]: the root mean square of the weights that read it, which for a single weight is
    |w|.

    Args:
        weights: the gated parameters by name.
        placements: where gates lie on them.
        units: how many gates there are.
        relative_to: groups whose scores are divided by their mean, so that layers of different scales can be compared.
    """
    device = next(iter(weights.values())).device
    squares, counts = (torch.zeros(units + 1, device=device) for _ in range(2))  # the last: what has no gate, unit −1
    for placement in placements:
        square = weights[placement.weight].detach().float().square()
        rows = placement.rows(square)
        each = rows.sum(1) if placement.dim is not None else rows[:, 0]
        owners = placement.units.to(device) % (units + 1)
        squares.index_add_(0, owners, each)
        counts.index_add_(0, owners, torch.full_like(each, rows.shape[1]))
    scores = (squares / counts.clamp(min=1)).sqrt()[:-1]
    for group in relative_to:
        scores[group.slice] /= scores[group.slice].mean().clamp(min=torch.finfo(scores.dtype).tiny)
    return scores
