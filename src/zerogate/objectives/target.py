"""`Target`: what may be left of the dense cost, in place of a weight of the penalty."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zerogate.cost.model import CostModel
from zerogate.errors import ZerogateError
from zerogate.gates.gate import Gate

if TYPE_CHECKING:
    from zerogate.sparsified import Sparsified

REACH = 2 / 3
"""Share of the run after which the target is reached."""
SETTLE = 5 / 6
"""Share of the run after which the network is made to fit and gates stand still; the rest of it is for the weights."""
MARGIN = 0.01
"""The network that is deployed ends at most this share of the dense cost under the target."""
UNKNOWN = 10_000
"""Steps that set the pace where nobody says how many there will be."""
# Found on the digits, from 200 to 400 steps, both gates, Adam and SGD: half of both lags behind where the gates' learning
# rate falls, more than twice swings through the target and closes layers on the way.
_PACE, _DAMPING = 400.0, 120.0
_LARGEST = math.log1p(1e4)  # of |μ|: what a loss in float32 still bears


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
        given = {
            key: value for key, value in (("params", params), ("macs", macs), ("gates", gates)) if value is not None
        }
        if len(given) != 1:
            raise ZerogateError(
                f"a target is a share of the parameters, of the MACs or of the gates, got params={params}, macs={macs}, "
                f"gates={gates}; give one"
            )
        ((self.over, share),) = given.items()
        value: Any = share
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 < value <= 1):  # NaN compares false
            raise ZerogateError(f"{self.over} is the share that may be left, in (0, 1], got {share}")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ZerogateError(f"steps must be a whole number of at least 1, or None, got {steps}")
        self.share = float(share)
        self.steps = steps
        self.steps_done = 0
        self.settled = False
        """Whether gates stand still by now, and only weights are trained."""
        self.projected: int | None = None
        """How many gates `Sparsified.project` has changed so far; None before the first time."""
        for name in ("multiplier", "_log", "_start"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, p: Tensor, cost: CostModel) -> Tensor:
        """0-dim loss term from open probabilities p [units]."""
        return (self.multiplier * self._left(p, cost)).to(p.dtype)

    def _left(self, p: Tensor, cost: CostModel) -> Tensor:
        if self.over == "gates":
            return p.mean().float()
        return cost.weighted(p, self.over, 1 / getattr(cost.dense, self.over)).float()

    @torch.no_grad()
    def step(self, p: Tensor, is_open: Tensor, cost: CostModel) -> bool:
        """Called once after each optimizer step; moves the multiplier on. Whether this is the step at which gates settle.

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
        """The dual update for these shares of the dense cost, 0-dim."""
        steps = self.steps or UNKNOWN
        done = self.steps_done / steps
        weight = 0.5 + 0.5 * min(1.0, max(0.0, (done - REACH) / ((1 - REACH) / 2)))
        left = torch.lerp(expected, deployed, weight)
        if self.steps_done == 0:
            self._start.copy_(left)
        self.steps_done += 1
        way = min(1.0, self.steps_done / (REACH * steps))
        allowed = self._start + (self.share - self._start) * way
        over = left - allowed
        g = over.clamp(min=0) + (over + MARGIN).clamp(max=0)
        log = (self._log + _PACE / steps * g).clamp(-_LARGEST, _LARGEST)
        log = torch.where(log * g > 0, log, torch.zeros_like(log))
        self._log.copy_(log)
        self.multiplier.copy_(log.sign() * torch.expm1(log.abs()) + _DAMPING * g)

    def _settle_if_due(self) -> None:
        self.settled = self.steps is not None and self.steps_done >= round(SETTLE * self.steps)
        if self.settled:
            self.multiplier.zero_()

    def restart(self, share: float, steps: int) -> None:
        """Begins anew, with another share and number of steps."""
        self.share, self.steps, self.steps_done, self.projected, self.settled = share, steps, 0, None, False
        for buffer in (self.multiplier, self._log, self._start):
            buffer.zero_()

    def allowed(self, cost: CostModel) -> float:
        """The largest cost that fits."""
        return self.share * self.dense(cost)

    def dense(self, cost: CostModel) -> int:
        """What the target is about, with every gate open."""
        return cost.units if self.over == "gates" else int(getattr(cost.dense, self.over))

    def left(self, is_open: Tensor, cost: CostModel) -> int:
        """What is left of it with these units open, bool [units]."""
        return int(is_open.sum()) if self.over == "gates" else int(getattr(cost.exact(is_open), self.over))

    def check(self, cost: CostModel, units: int) -> None:
        """Raises `ZerogateError` where even the network without these units costs more."""
        least, dense = self.left(torch.zeros(units, dtype=torch.bool), cost), self.dense(cost)
        if least > self.allowed(cost):
            smallest = math.ceil(1e4 * least / max(dense, 1)) / 1e4
            raise ZerogateError(
                f"{self.over}={self.share:g} cannot be reached: {least:,} of {dense:,} {self.over} are left when every "
                f"gate is closed, what layers without gates and the last units of groups cost; the smallest share is "
                f"{smallest:g}, got {self.share:g}"
            )

    def get_extra_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("steps_done", "steps", "projected", "share")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.steps, self.projected = state["steps_done"], state["steps"], state["projected"]
        self.share = state.get("share", self.share)  # states of before targets could restart have none
        self._settle_if_due()

    def extra_repr(self) -> str:
        return f"{self.over}={self.share}, steps={self.steps}"


def fitting(order: Tensor, number: int, target: Target, cost: CostModel, margin: float = MARGIN) -> int:
    """How many units should be open for the cost to fit: `number` if it does, else the fewest changes.

    Args:
        order: units by how open they are, the most open first, int64 [units].
        number: how many of them are open now.
        margin: the share of the dense cost by which it may end below.

    Costs grow with every unit that opens, so a search by halves finds the number.
    """
    dense = target.dense(cost)
    limit = target.allowed(cost)

    def left(n: int) -> int:
        is_open = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        is_open[order[:n]] = True
        return target.left(is_open, cost)

    def largest(low: int, high: int, most: float) -> int:
        """The largest n in [low, high] whose cost is at most `most`; that of `low` is."""
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if left(middle) <= most else (low, middle - 1)
        return low

    now = left(number)
    if now > limit:
        return largest(0, number, limit)
    if now >= limit - margin * dense:
        return number
    most = largest(number, len(order), limit)
    least = largest(number, most, limit - margin * dense)  # the next one is within the margin
    return min(least + 1, most)


@torch.no_grad()
def settle(sparse: Sparsified) -> None:
    """Makes the network fit, for the weights to follow.

    One unit of a group stays in any case, so the likeliest is opened where all are closed. And a hard-concrete gate that
    never decided is deployed as nearly 0: weights are trained with it from now on, so it may as well count. Logits of
    open gates are at least 0."""
    logits, is_open = sparse.logits, sparse.is_open()
    best = _best(sparse)
    empty = best[[not bool(is_open[g.slice].any()) for g in sparse.groups]]
    logits[empty] = _across(sparse.gate, logits[empty], True)
    project(sparse)
    logits.copy_(torch.where(sparse.is_open(), logits.clamp(min=0), logits))


@torch.no_grad()
def project(sparse: Sparsified, margin: float = MARGIN) -> int:
    """See `Sparsified.project`."""
    target, is_open, logits = sparse.objective, sparse.is_open(), sparse.logits
    assert isinstance(target, Target)
    first = is_open.to(torch.int8)
    first[_best(sparse)] *= 2
    order = logits.argsort(descending=True, stable=True)
    order = order[first[order].argsort(descending=True, stable=True)]
    now = int(is_open.sum())
    wanted = fitting(order, now, target, sparse.cost_model, margin)
    changed = order[min(now, wanted) : max(now, wanted)]
    logits[changed] = _across(sparse.gate, logits[changed], wanted > now)
    target.projected = (target.projected or 0) + len(changed)
    return len(changed)


def _best(sparse: Sparsified) -> Tensor:
    """The unit of each group with the highest logit, int64 [groups]."""
    return torch.stack([g.slice.start + sparse.logits[g.slice].argmax() for g in sparse.groups])


def _across(gate: Gate, logits: Tensor, opens: bool) -> Tensor:
    """The nearest logits at which these gates, all closed or all open, are the other thing: a little beyond the edge,
    where hard-concrete gates multiply by nearly 0, so that opening them changes next to nothing.

    Args:
        logits: in descending order, which is kept."""
    sign = 1.0 if opens else -1.0

    def crossed(x: Tensor) -> Tensor:
        return (gate.mask(x) > 0) == opens

    near, step = logits.clone(), torch.ones_like(logits)
    far = near + sign * step
    for _ in range(20):
        step = torch.where(crossed(far), step, 2 * step)
        far = logits + sign * step
    for _ in range(40):
        middle = (near + far) / 2
        beyond = crossed(middle)
        near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
    place = torch.linspace(1.0, 0.0, len(logits), device=logits.device, dtype=logits.dtype)  # keeps their order
    return far + sign * 1e-3 * (1 + far.abs()) * (1 + (place if opens else 1 - place))
