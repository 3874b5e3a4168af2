"""One training of a ticket search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from zerogate.errors import ZerogateError
from zerogate.sparsified import Sparsified


class Search(Protocol):
    """What a stage asks of the `TicketSearch` that it is part of."""

    sparse: Sparsified
    rounds: int
    number: int
    steps_done: int
    steps_per_epoch: int | None
    lengths: list[int]

    def step(self) -> None: ...

    def rewind(self, optimizer: torch.optim.Optimizer) -> None: ...


@dataclass(frozen=True)
class Stage:
    """One training of a search: a round, or the last, of the ticket."""

    search: Search
    number: int

    @property
    def name(self) -> str:
        """ "round 1", "round 2", …, "ticket"."""
        return "ticket" if self.is_ticket else f"round {self.number + 1}"

    @property
    def is_ticket(self) -> bool:
        """Whether it is the last stage, with hard masks."""
        return self.number == self.search.rounds

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.search.lengths[self.number]

    @property
    def epochs(self) -> int:
        """Epochs of the stage, rounded up.

        Raises `ZerogateError` where the search was not told ``steps_per_epoch``."""
        if not self.search.steps_per_epoch:
            raise ZerogateError("the search does not know how long an epoch is; give steps_per_epoch, or count steps")
        return -(-self.steps // self.search.steps_per_epoch)

    @property
    def steps_done(self) -> int:
        """Steps made so far."""
        return self.search.steps_done if self.search.number == self.number else self.steps

    def param_groups(self, lr: float, gate_lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """As `Sparsified.param_groups`; without gates where these do not learn."""
        return self.search.sparse.param_groups(lr, gate_lr, weight_decay)

    def loss(self) -> Tensor:
        """As `Sparsified.loss`; 0 for gates that do not learn."""
        return self.search.sparse.loss()

    def step(self) -> None:
        """Call once after each optimizer step."""
        self.search.step()

    def rewind(self, optimizer: torch.optim.Optimizer) -> None:
        """See `TicketSearch.rewind`."""
        self.search.rewind(optimizer)
