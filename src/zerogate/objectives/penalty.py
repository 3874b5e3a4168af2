"""`Penalty`: a term of fixed weight that is added to the task's loss."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor, nn

from zerogate.checks import check, check_choice
from zerogate.cost.channels import CostModel
from zerogate.objectives.budget import OVER, Over, dense_count

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
        check(math.isfinite(weight) and weight >= 0, "the penalty's weight (λ)", "a finite number ≥ 0", weight)
        check_choice("over", over, OVER)
        check_choice("reduce", reduce, get_args(Reduce))
        self.weight = weight
        self.over: Over = over
        self.reduce = reduce

    def forward(self, p: Tensor, cost: CostModel) -> Tensor:
        """The loss term, 0-dim, at open probabilities p [units]."""
        if self.over == "gates":
            return p.sum() * (self.weight / len(p) if self.reduce == "mean" else self.weight)
        dense = dense_count(cost, self.over) if self.reduce == "mean" else 1
        return cost.priced(p, self.over, self.weight / dense)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, over={self.over!r}, reduce={self.reduce!r}"
