"""`GateControl`: what moves gates apart from their gradients: the objective's term, schedules, targets and pruners."""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.gates.pruners import Pruner
from zerogate.gates.schedules import share_steps
from zerogate.masking.forward import GatedForward
from zerogate.masking.gated_weights import GatedWeights
from zerogate.objectives import projection
from zerogate.objectives.budget import Budget
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target
from zerogate.objectives.usage import UsageCheck

Objective = Penalty | Target

LEAST_TRAVEL = 0.3
"""With Adam a logit moves by about its learning rate a step. Over a run whose length is known it should be able to move by
this times the gate's own rate, which is enough to open and to close: 30 for hard-concrete gates, 9 for soft masks."""


class GateControl:
    """Moves gates between two forwards, as an objective asks.

    Args:
        forward: draws the gates.
        weights: on which they lie.
    """

    def __init__(self, forward: GatedForward, weights: GatedWeights) -> None:
        self._forward, self._weights = forward, weights
        self._gates, self._layout = forward.gates, forward.layout
        self.usage = UsageCheck(forward)
        self._standing: Tensor | None = None
        """The logits, for as long as they stay as they are."""

    def budget(self, objective: Objective) -> Budget | None:
        """The budget of a `Target`; None for other objectives."""
        return objective.budget(self._layout.cost) if isinstance(objective, Target) else None

    def learning_rate(self, objective: Objective, lr: float) -> float:
        """The gates' learning rate where the weights' is ``lr``; see `Sparsified.param_groups`."""
        share_steps(self._gates.gate, objective)
        steps = objective.steps if isinstance(objective, Target) else None
        return self._gates.gate.rate * max(lr, LEAST_TRAVEL / steps if steps else 0.0)

    def loss(self, objective: Objective) -> Tensor:
        """The objective's term, 0-dim; 0 for gates that do not learn."""
        self.usage.loss(objective)
        if not self._gates.gate.learns:
            return self._gates.logits.new_zeros(())
        self._standing = self._gates.logits.detach().clone() if self._gates.frozen else None
        p = self._forward.open_probability(movable=isinstance(objective, Target))
        return objective(p, self._layout.cost)

    def step(self, objective: Objective) -> None:
        """What follows an optimizer step: schedules and multiplier move on, a pruner closes what is due, and gates settle
        where a target says so."""
        gates = self._gates
        self.usage.step(objective)
        share_steps(gates.gate, objective)
        gates.gate.step()
        if not gates.gate.learns:
            self.prune(objective)
            self._weights.zero_closed()
        elif isinstance(objective, Target):
            self._keep_standing()
            if objective.step(gates.open_probability(), gates.is_open(), self._layout.cost):
                budget = objective.budget(self._layout.cost)
                self._take(objective, *projection.settle(gates.logits, self._layout.groups, gates.gate, budget))
            self.follow(objective)

    def follow(self, objective: Objective) -> None:
        """Has gates stand still from the step at which a target has settled, also where a checkpoint says so."""
        self._gates.frozen = isinstance(objective, Target) and objective.settled and self._gates.gate.learns

    def _keep_standing(self) -> None:
        """Puts logits back that stand still: the optimizer's momentum has moved them."""
        if self._standing is not None:
            with torch.no_grad():
                self._gates.logits.copy_(self._standing)
            self._standing = None

    def project(self, objective: Objective, margin: float = projection.MARGIN) -> int:
        """Makes the network fit a target's budget; returns how many gates changed. See `projection.project`."""
        gates = self._gates
        if not isinstance(objective, Target) or not gates.gate.learns:
            return 0
        budget = objective.budget(self._layout.cost)
        return self._take(objective, *projection.project(gates.logits, self._layout.groups, gates.gate, budget, margin))

    def _take(self, target: Target, logits: Tensor, changed: int) -> int:
        """Takes the logits of a network that fits, and counts how many gates have changed for it."""
        target.projected = (target.projected or 0) + changed
        with torch.no_grad():
            self._gates.logits.copy_(logits)
        return changed

    def prune(self, objective: Objective, share: float | None = None) -> None:
        """Closes what a pruner says: what is due at this step, or, with a share of the gates or of the budget's dense
        count, all that is beyond it."""
        gate = self._gates.gate
        if isinstance(gate, Pruner) and (share is not None or gate.is_due):
            given = self._weights.magnitudes(), self._gates.is_open(), self._layout.groups, self.budget(objective)
            stays = gate.next_open(*given) if share is None else gate.pruned_to(share, *given)
            if stays is not None:
                self._weights.open_only(stays)
