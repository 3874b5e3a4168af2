"""`Target`: what may be left of the dense cost, in place of a weight of the penalty."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.checks import check_share, check_whole
from zerogate.cost.channels import CostModel
from zerogate.errors import ZerogateError
from zerogate.objectives.budget import Budget, Over, dense_count
from zerogate.objectives.projection import MARGIN

REACH = 2 / 3
"""Share of the run after which the target is reached."""
SETTLE = 5 / 6
"""Share of the run after which the network is made to fit and gates stand still; the rest of it is for the weights."""
UNKNOWN = 10_000
"""Steps that set the pace where nobody says how many there will be."""
_PACE = 400.0
"""Of the multiplier, per share of the dense count and per run. Found on the digits, runs of 200 to 400 steps, both gates,
Adam and SGD: at half of this and of the damping the multiplier lags when the gates' learning rate decays; above twice, it
overshoots and closes whole layers."""
_DAMPING = 120.0
"""Of the term that is proportional to what is too much or too little now."""
_LARGEST = math.log1p(1e4)
"""Of |μ|: what a loss in float32 still bears."""


class Target(nn.Module):
    """The share of the dense cost that may be left: ``Target(params=0.1)`` or ``Target(macs=0.3)``; or, with
    ``Target(gates=0.2)``, the share of all gates that may be open.

    A multiplier λ weighs the expected cost in the loss, as the λ of a `Penalty` does, and is learned: dual ascent with
    dual restarts (Gallego-Posada et al., NeurIPS 2022, arXiv 2208.04425). After every step, with c the share that is
    left now and d_t the share that is allowed now:

        g = max(0, c − d_t) + min(0, c − d_t + 0.01)       too much, or more than a point too little
        μ ← μ + 400·g/steps;  μ ← 0 unless μ·g > 0          dual ascent, restarted where the constraint holds
        λ = sign(μ)·(exp|μ| − 1) + 120·g                    the last term damps the oscillation

    λ is negative while too little is left: gates are then paid for opening. d_t falls in a line from what is left at the
    beginning to the target, which it reaches after two thirds of the steps. c is the mean of the expected share and the
    deployed one (what `Sparsified.compact` would leave); over the first half of the last third it becomes the deployed
    one. Expected cost gives the gradient; λ follows what will count.

    After five sixths of the steps gates settle. A group whose gates are all closed gets its likeliest one back, since
    one unit of it stays in any case; the network is made to fit, as by `Sparsified.project`; and gates stand still from
    then on. What is left of the run trains the weights of the network that will be deployed, with its own mask, also
    where gates were random before. Nothing else is read on the host.

    Args:
        params, macs, gates: the share of the dense network's parameters, of its MACs, or of all gates, in (0, 1]; one of
            the three.
        steps: optimizer steps of the whole run. The training command fills it in; in a loop of your own give it here.

    The multiplier, the steps done and their number are part of the state, so a resumed run goes on as if it had never
    stopped. Raises `ZerogateError` for values outside these ranges.
    """

    multiplier: Tensor
    _log: Tensor
    _start: Tensor

    def __init__(
        self,
        params: float | None = None,
        macs: float | None = None,
        *,
        gates: float | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        shares: dict[Over, float | None] = {"params": params, "macs": macs, "gates": gates}
        asked = [(over, share) for over, share in shares.items() if share is not None]
        if len(asked) != 1:
            raise ZerogateError(
                f"a target is a share of the parameters, of the MACs or of the gates, got params={params}, macs={macs}, "
                f"gates={gates}; give one"
            )
        self.over, share = asked[0]
        check_share(self.over, share)
        check_whole("steps", steps, optional=True)
        self.share = float(share)
        self.steps = steps
        self.steps_done = 0
        self.settled = False
        """Whether gates stand still by now, so that only weights are trained."""
        self.projected: int | None = None
        """How many gates `Sparsified.project` has changed so far; None before the first time."""
        for name in ("multiplier", "_log", "_start"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, p: Tensor, cost: CostModel) -> Tensor:
        """The loss term, 0-dim, at open probabilities p [units]."""
        return (self.multiplier * self._left(p, cost)).to(p.dtype)

    def _left(self, p: Tensor, cost: CostModel) -> Tensor:
        """The share of the dense count that is left at open probabilities p [units], 0-dim."""
        if self.over == "gates":
            return p.mean().float()
        return cost.priced(p, self.over, 1 / dense_count(cost, self.over)).float()

    @torch.no_grad()
    def step(self, p: Tensor, is_open: Tensor, cost: CostModel) -> bool:
        """Called once after each optimizer step; moves the multiplier on. Returns whether gates settle at this step.

        Args:
            p: open probabilities [units].
            is_open: which units the deployed mask lets through, bool [units].
        """
        if self.steps is None and self.steps_done == 0:
            warnings.warn(
                f"Target does not know how long training lasts and takes {UNKNOWN} steps for it: give Target(steps=...)",
                stacklevel=3,
            )
        if self.settled:
            self.steps_done += 1
            return False
        expected, deployed = self._left(p, cost), self._left(is_open.to(p.dtype), cost)
        self.advance(expected, deployed)
        self._settle_if_due()
        return self.settled

    @torch.no_grad()
    def advance(self, expected: Tensor, deployed: Tensor) -> None:
        """The dual update, in the symbols of the class.

        Args:
            expected, deployed: the shares of the dense count that are left, 0-dim."""
        steps = self.steps or UNKNOWN
        done = self.steps_done / steps
        weight = 0.5 + 0.5 * min(1.0, max(0.0, (done - REACH) / ((1 - REACH) / 2)))
        c = torch.lerp(expected, deployed, weight)
        if self.steps_done == 0:
            self._start.copy_(c)
        self.steps_done += 1
        progress = min(1.0, self.steps_done / (REACH * steps))
        d = self._start + (self.share - self._start) * progress
        excess = c - d
        g = excess.clamp(min=0) + (excess + MARGIN).clamp(max=0)
        mu = (self._log + _PACE / steps * g).clamp(-_LARGEST, _LARGEST)
        mu = torch.where(mu * g > 0, mu, torch.zeros_like(mu))
        self._log.copy_(mu)
        self.multiplier.copy_(mu.sign() * torch.expm1(mu.abs()) + _DAMPING * g)

    def _settle_if_due(self) -> None:
        self.settled = self.steps is not None and self.steps_done >= round(SETTLE * self.steps)
        if self.settled:
            self.multiplier.zero_()

    def restart(self, share: float, steps: int) -> None:
        """Starts again from the first step, with another share and number of steps."""
        self.share, self.steps, self.steps_done, self.projected, self.settled = share, steps, 0, None, False
        for buffer in (self.multiplier, self._log, self._start):
            buffer.zero_()

    def set_steps(self, steps: int) -> None:
        """Says how many optimizer steps the run has."""
        self.steps = steps

    def budget(self, cost: CostModel) -> Budget:
        """What may be left of a network, counted by its cost model."""
        return Budget.of_share(self.over, cost, self.share)

    # Names of before 0.2, for one release: a target's budget says all this now.

    def dense(self, cost: CostModel) -> int:
        """`Budget.dense`."""
        return self.budget(cost).dense

    def allowed(self, cost: CostModel) -> float:
        """`Budget.limit`."""
        return self.budget(cost).limit

    def left(self, is_open: Tensor, cost: CostModel) -> int:
        """`Budget.left`."""
        return self.budget(cost).left(is_open)

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps_done", "steps", "projected", "share")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.steps, self.projected = state["steps_done"], state["steps"], state["projected"]
        self.share = state.get("share", self.share)  # states of before targets could restart have none
        self._settle_if_due()

    def extra_repr(self) -> str:
        return f"{self.over}={self.share}, steps={self.steps}"
