"""What a network costs: parameters and multiply-accumulates, and what every model of such costs can say.

MACs are those of convolutions and linear layers, for one example (bias additions, normalisation and activations are not
counted); parameters are all entries of `model.parameters()`, each once.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

N = TypeVar("N")


@dataclass(frozen=True)
class Cost(Generic[N]):
    """Parameters and MACs per example: ints where counted, 0-dim float64 tensors where expected."""

    params: N
    macs: N


Counted = Cost[int]
"""What a network costs as it is deployed."""
Expected = Cost[Tensor]
"""What a network costs on average over random gates."""


class CostModel(ABC):
    """Cost as a function of how likely each unit is open: one formula for what is expected and for what is deployed."""

    units: int

    @functools.cached_property
    def dense(self) -> Counted:
        """Cost with every unit open."""
        return self.exact(torch.ones(self.units, dtype=torch.bool))

    def expected(self, p: Tensor) -> Expected:
        """Cost at open probabilities p [units]; where all are 0 or 1, the count of the compacted module."""
        p = p.double()
        return Cost(self.weighted(p, "params"), self.weighted(p, "macs"))

    def weighted(self, p: Tensor, over: str, weight: float = 1.0) -> Tensor:
        """weight · expected "params" or "macs" at open probabilities p [units], a 0-dim tensor of p's type."""
        return (weight * getattr(self.formula(p.double()), over)).to(p.dtype)

    @abstractmethod
    def formula(self, p: Tensor) -> Expected:
        """Expected cost for p [units] in float64, in ops that can be differentiated any number of times."""

    def exact(self, is_open: Tensor) -> Counted:
        """Cost of what compaction gives for these open units, bool [units]."""
        cost = self.expected(is_open.detach().double())
        return Cost(round(cost.params.item()), round(cost.macs.item()))

    def in_use(self, is_open: Tensor) -> Tensor:
        """Those of these open units, bool [units], whose results can reach the end of the network."""
        return is_open

    @abstractmethod
    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        """Units that compaction keeps, bool [units].

        Args:
            is_open: which units the deployed mask lets through, bool [units].
            logits: how open each unit is, [units]; where more units must stay than are open, the highest do.
        """
