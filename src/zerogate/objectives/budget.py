"""`Budget`: how much of a network may be left, counted as it will be deployed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from zerogate.cost.model import CostModel
from zerogate.errors import ZerogateError

Over = Literal["gates", "params", "macs"]
OVER: tuple[str, ...] = get_args(Over)
"""What can be counted: open gates, parameters, MACs per example."""


def dense_count(cost: CostModel, over: Over) -> int:
    """What there is with every gate open."""
    return cost.units if over == "gates" else int(getattr(cost.dense, over))


@dataclass(frozen=True)
class Budget:
    """At most so much may be left of a network.

    Attributes:
        over: what is counted.
        cost: counts it.
        limit: the most that may be left.
        share: the same as a share of the dense count.
    """

    over: Over
    cost: CostModel
    limit: float
    share: float

    @classmethod
    def of_share(cls, over: Over, cost: CostModel, share: float) -> Budget:
        """At most this share of the dense count."""
        return cls(over, cost, share * dense_count(cost, over), share)

    @classmethod
    def of_count(cls, over: Over, cost: CostModel, limit: int) -> Budget:
        """At most so many."""
        return cls(over, cost, limit, limit / max(dense_count(cost, over), 1))

    @property
    def dense(self) -> int:
        """What there is with every gate open."""
        return dense_count(self.cost, self.over)

    def left(self, is_open: Tensor) -> int:
        """What compaction leaves of the network with these units open, bool [units]."""
        return int(is_open.sum()) if self.over == "gates" else int(getattr(self.cost.exact(is_open), self.over))

    def at(self, share: float) -> Budget:
        """The budget of this share of the dense count."""
        return Budget.of_share(self.over, self.cost, share)

    def largest(self, order: Tensor, low: int = 0, high: int | None = None, limit: float | None = None) -> int:
        """How many units may be open: the largest n in [low, high] for which the first n of ``order`` fit.

        Costs never fall when a unit opens, so n is found by bisection. That of ``low`` is taken to fit.

        Args:
            order: units in the order in which they open, int64 [units].
            limit: in place of the budget's own.
        """
        high = len(order) if high is None else high
        limit = self.limit if limit is None else limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.left_of_first(order, middle) <= limit else (low, middle - 1)
        return low

    def left_of_first(self, order: Tensor, number: int) -> int:
        """What is left with the first so many units of an order open."""
        is_open = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        is_open[order[:number]] = True
        return self.left(is_open)

    def check_reachable(self) -> None:
        """Raises `ZerogateError` where even the network without any of its units is over the limit."""
        least, share = self.left(torch.zeros(self.cost.units, dtype=torch.bool)), self.share
        if least > self.limit:
            smallest = math.ceil(1e4 * least / max(self.dense, 1)) / 1e4
            raise ZerogateError(
                f"{self.over}={share:g} cannot be reached: {least:,} of {self.dense:,} {self.over} are left when every "
                f"gate is closed, what layers without gates and the last units of groups cost; the smallest share is "
                f"{smallest:g}, got {share:g}"
            )

    def warn_if_exceeded(self, is_open: Tensor, stacklevel: int) -> None:
        """Warns where more is left with these units open than fits, bool [units]."""
        left = self.left(is_open)
        if left > self.limit:
            warnings.warn(
                f"{left:,} of {self.dense:,} {self.over} are left ({left / self.dense:.2%}), and the target is "
                f"{self.share:.2%}: train longer, or call project() on the handle first, which closes the most doubtful "
                "gates",
                stacklevel=stacklevel + 1,
            )
