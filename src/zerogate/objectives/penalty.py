"""What is added to the task's loss."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor, nn

from zerogate.cost.model import CostModel
from zerogate.errors import ZerogateError

Over = Literal["gates", "params", "macs"]
Reduce = Literal["mean", "sum"]


class Penalty(nn.Module):
    """λ · L0: the expected number of open gates (Louizos 2018, eq. 4 and 12), or the expected cost of the open network.

    Args:
        weight: λ ≥ 0.
        over: what is counted: open ``gates``, remaining ``params``, or remaining ``macs`` per example.
        reduce: ``mean`` divides by the dense count, so the term is λ times a density; ``sum`` is the count itself, as the
            papers write it.

    Raises `ZerogateError` for a negative, infinite or NaN weight and for unknown words.
    """

    def __init__(self, weight: float = 1.0, over: Over = "gates", reduce: Reduce = "mean") -> None:
        super().__init__()
        if not (math.isfinite(weight) and weight >= 0):
            raise ZerogateError(f"the penalty's weight (λ) must be a finite number ≥ 0, got {weight}")
        if over not in get_args(Over):
            raise ZerogateError(f"a penalty is over one of {', '.join(get_args(Over))}, got {over!r}")
        if reduce not in get_args(Reduce):
            raise ZerogateError(f"a penalty's reduce is one of {', '.join(get_args(Reduce))}, got {reduce!r}")
        self.weight = weight
        self.over = over
        self.reduce = reduce

    def forward(self, p: Tensor, cost: CostModel) -> Tensor:
        """0-dim loss term from open probabilities p [units]."""
        if self.over == "gates":
            return p.sum() * (self.weight / len(p) if self.reduce == "mean" else self.weight)
        dense = getattr(cost.dense, self.over) if self.reduce == "mean" else 1
        return cost.weighted(p, self.over, self.weight / dense)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, over={self.over!r}, reduce={self.reduce!r}"
