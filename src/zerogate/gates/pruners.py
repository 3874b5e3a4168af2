"""Baselines: gates closed by the magnitude of weights, or at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from zerogate.errors import ZerogateError
from zerogate.gates.fixed import FixedGate
from zerogate.objectives.target import Target, fitting

if TYPE_CHECKING:
    from zerogate.sparsified import Sparsified

Scope = Literal["global", "layer"]


class Magnitude(FixedGate):
    """Closes the units of the smallest weights: gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878, eq. 1), or all
    at once, or in the rounds of a `TicketSearch` (iterative magnitude pruning; Frankle and Carbin, ICLR 2019).

    From the share ``begin`` of the run to the share ``end`` the density of gates falls, in n steps, as
        d_k = d + (1 − d)·(1 − k/n)³,  k = 0 … n
    and every time the open units of the lowest score close for good. The score of a weight is |w|; of a channel or head the
    root mean square of the weights that read it, over the mean of its group. With a `Target`, its share of parameters or
    MACs takes the place of the density.

    Args:
        density: share of the gates that stays open, in (0, 1]; left out with a `Target`.
        begin, end: shares of the run, 0 ≤ begin ≤ end ≤ 1; the same number prunes at once.
        every: optimizer steps between two prunings; None for a hundredth of the time between begin and end.
        scope: ``"global"`` ranks all units together, ``"layer"`` those of each group, which then all have this density.
        steps: optimizer steps of the run. The training command and `TicketSearch` fill it in.

    Raises `ZerogateError` for values outside these ranges.
    """

    def __init__(
        self,
        density: float | None = None,
        *,
        begin: float = 0.0,
        end: float = 0.5,
        every: int | None = None,
        scope: Scope = "global",
        steps: int | None = None,
    ) -> None:
        super().__init__()
        _check_density(density, optional=True)
        if not 0 <= begin <= end <= 1:
            raise ZerogateError(f"begin and end are shares of the run, 0 <= begin <= end <= 1, got {begin} and {end}")
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise ZerogateError(f"every is a whole number of optimizer steps of at least 1, or None, got {every!r}")
        if scope not in get_args(Scope):
            raise ZerogateError(f"scope is one of {', '.join(get_args(Scope))}, got {scope!r}")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ZerogateError(f"steps must be a whole number of at least 1, or None, got {steps!r}")
        self.density, self.range, self.every, self.scope = density, (begin, end), every, scope
        self.steps = steps
        self.steps_done = 0
        self.in_rounds = False
        """Whether a `TicketSearch` says when to prune."""

    def step(self) -> None:
        self.steps_done += 1

    def progress(self) -> float | None:
        """k/n if it is time to prune, else None."""
        if self.in_rounds:
            return None
        if self.steps is None:
            raise ZerogateError("Magnitude does not know how long training lasts: give Magnitude(steps=...)")
        begin, end = (max(1, round(share * self.steps)) for share in self.range)
        every = self.every or max(1, (end - begin) // 100)
        at = self.steps_done
        if not begin <= at <= end or (at != end and (at - begin) % every):
            return None
        return 1.0 if at == end else (at - begin) / (end - begin)

    def follow(self, sparse: Sparsified) -> None:
        k = self.progress()
        if k is not None:
            final = self.final(sparse)
            self.prune(sparse, final + (1 - final) * (1 - k) ** 3)

    def final(self, sparse: Sparsified) -> float:
        """The density, or the target's share, to end with."""
        share = sparse.objective.share if isinstance(sparse.objective, Target) else None
        if (share is None) == (self.density is None):
            raise ZerogateError(
                f"Magnitude takes a density or a Target, one of the two, got density={self.density} and "
                f"{'a target' if share is not None else 'none'}"
            )
        return float(self.density if share is None else share)  # type: ignore[arg-type]

    @torch.no_grad()
    def prune(self, sparse: Sparsified, density: float) -> None:
        """Closes the open units of the lowest scores, until this density or share is left."""
        is_open = sparse.is_open()
        scores = magnitudes(sparse).masked_fill(~is_open, -1.0)
        if self.scope == "layer":
            ranks = torch.empty_like(scores)
            for group in sparse.groups:  # ranks within the group, from 1 for the first down to 0
                order = scores[group.slice].argsort(descending=True, stable=True)
                ranks[group.slice][order] = 1 - torch.arange(group.units, device=scores.device) / group.units
            scores = ranks
        order = scores.argsort(descending=True, stable=True)
        sparse.open_only(order[: min(_number(sparse, order, density), int(is_open.sum()))])

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done, "steps": self.steps, "in_rounds": self.in_rounds}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.steps, self.in_rounds = state["steps_done"], state["steps"], state["in_rounds"]

    def extra_repr(self) -> str:
        begin, end = self.range
        return f"density={self.density}, begin={begin}, end={end}, scope={self.scope!r}, steps={self.steps}"


class Random(FixedGate):
    """Closes units at random when gates are put on a model, the same share of every group: the baseline that knows nothing.

    Args:
        density: share of each group's gates that stays open, in (0, 1].

    Raises `ZerogateError` for another density. For the densities of another ticket layer by layer, harden gates with
    `Mask.shuffled` of it.
    """

    def __init__(self, density: float) -> None:
        super().__init__()
        _check_density(density)
        self.density = density

    def begin(self, sparse: Sparsified) -> None:
        kept = [torch.randperm(g.units)[: max(1, round(self.density * g.units))] + g.slice.start for g in sparse.groups]
        sparse.open_only(torch.cat(kept).to(sparse.logits.device))

    def extra_repr(self) -> str:
        return f"density={self.density}"


@torch.no_grad()
def magnitudes(sparse: Sparsified) -> Tensor:
    """Score of every unit, [units]: |w| of a weight; of a channel or head the root mean square of the weights that read it,
    over the mean of its group."""
    parameters = dict(sparse.model.named_parameters())
    squares, counts = (torch.zeros(len(sparse.logits) + 1, device=sparse.logits.device) for _ in range(2))
    for lies in sparse.placements:
        square = parameters[lies.weight].detach().float().square()
        along = lies.view.index(-1) if -1 in lies.view else None
        each = square.flatten() if along is None else square.movedim(along, 0).flatten(1).sum(1)
        units = lies.units.to(square.device)  # -1, never gated, is the last
        squares.index_add_(0, units % len(squares), each)
        counts.index_add_(0, units % len(squares), torch.full_like(each, square.numel() / len(each)))
    scores = (squares / counts.clamp(min=1)).sqrt()[:-1]
    if sparse.unit != "weight":
        for group in sparse.groups:
            scores[group.slice] /= scores[group.slice].mean().clamp(min=torch.finfo(scores.dtype).tiny)
    return scores


def _number(sparse: Sparsified, order: Tensor, density: float) -> int:
    """How many units stay open, of this order, for a density of gates or, with a target, a share of its cost."""
    if not isinstance(sparse.objective, Target):
        return max(1, round(density * len(order)))
    options: dict[str, Any] = {sparse.objective.over: density}
    return fitting(order, len(order), Target(**options), sparse.cost_model)


def _check_density(density: float | None, optional: bool = False) -> None:
    if density is None and optional:
        return
    number = isinstance(density, (int, float)) and not isinstance(density, bool)
    if not (number and 0 < density <= 1):  # type: ignore[operator]
        raise ZerogateError(f"density is the share of gates that stays open, in (0, 1], got {density}")
