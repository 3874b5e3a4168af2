"""What a training loop forgets, said once: gates in no optimizer, a term that is never added, a step that is never taken."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from zerogate.gates.gate import Gate
from zerogate.masking.forward import GatedForward
from zerogate.modules.internals import must_stay_traceable, parameters_of, version_of
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target

_UPDATES = 3
"""After so many updates of the weights it is said what has been missing all along."""


class UsageCheck:
    """Watches how the handle of a gated model is used in training.

    It counts updates by the version of one gated weight, so that steps which an optimizer leaves out (after an overflow in
    mixed precision) and accumulated gradients do not count. Evaluation calls nothing of this.
    """

    def __init__(self, forward: GatedForward) -> None:
        self._forward = forward
        self._weight_was: int | None = None
        self._updates = 0
        self._logits_were: Tensor | None = None
        self._loss_used = self._step_used = self._gates_looked_at = False
        self._said: set[str] = set()

    def loss(self, objective: Penalty | Target) -> None:
        """To be told when the objective's term is asked for."""
        if must_stay_traceable():
            return
        self._loss_used = True
        gate = self._forward.gates.gate
        moves_on = isinstance(objective, Target) or type(gate).step is not Gate.step
        if self._several_updates() and moves_on and not self._step_used:
            self._say(
                "sparse.step() has not been called, so the schedule of the gates, or of the target, stands still; call it "
                "after each optimizer.step()"
            )

    def expected_cost(self) -> None:
        """To be told when an expected cost is asked for, which may stand for the objective's term."""
        self._loss_used = True

    def step(self, objective: Penalty | Target) -> None:
        """To be told when a step is taken."""
        self._step_used = True
        gates = self._forward.gates
        if not gates.gate.learns or gates.frozen or not gates.logits.requires_grad:
            return
        if self._logits_were is None:
            self._logits_were = gates.logits.detach().clone()
        if not self._several_updates():
            return
        asks_nothing = isinstance(objective, Penalty) and objective.weight == 0
        if not self._loss_used and not asks_nothing:
            self._say(
                "sparse.loss() has not been called, so nothing asks gates to close; add it to the loss of each step: "
                "(task_loss + sparse.loss()).backward()"
            )
        if not self._gates_looked_at:  # once: it waits for the device
            self._gates_looked_at = True
            if torch.equal(gates.logits, self._logits_were.to(gates.logits.device)):
                self._say(
                    "the gates have not moved while the weights have, so they are in no optimizer; make it of "
                    "sparse.param_groups(lr), or add sparse.logits to it"
                )

    def _several_updates(self) -> bool:
        """Notes an update of the weights, if there was one since; whether there have been several."""
        place = next(iter(self._forward.places.values()), None)
        weight = None if place is None else parameters_of(place[0]).get(place[1])
        if weight is not None:
            version = version_of(weight)
            self._updates += version != self._weight_was is not None
            self._weight_was = version
        return self._updates >= _UPDATES

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=5)  # the line that called the handle
