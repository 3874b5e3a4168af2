"""Gates that a rule closes: by the magnitude of weights, or at random. A pruner says which units stay open; the handle opens
and closes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, TypedDict, get_args

import torch
from torch import Tensor

from zerogate.checks import check, check_choice, check_share, check_whole
from zerogate.errors import ZerogateError
from zerogate.gates.fixed import FixedGate
from zerogate.gates.schedules import Cubic
from zerogate.structure import Group

Scope = Literal["global", "layer"]


class PruningBudget(Protocol):
    """What a pruner asks of a budget."""

    @property
    def share(self) -> float:
        """The share of the dense count that may be left."""

    def at(self, share: float) -> PruningBudget:
        """The budget of another share."""

    def largest(self, order: Tensor) -> int:
        """How many units may be open, if they open in this order, int64 [units]."""


class Pruner(FixedGate, ABC):
    """Gates closed by a rule, and never by a gradient.

    The handle calls `first_open` once when gates are put on a model, and `next_open` after every optimizer step; what they
    return are the units that stay open from then on, bool [units], or None where nothing changes.
    """

    def first_open(self, groups: Sequence[Group]) -> Tensor | None:
        """The units that are open at the beginning."""
        return None

    @abstractmethod
    def next_open(
        self, scores: Tensor, is_open: Tensor, groups: Sequence[Group], budget: PruningBudget | None
    ) -> Tensor | None:
        """The units that stay open after this optimizer step.

        Args:
            scores: magnitude of every unit, [units].
            is_open: which are open now, bool [units].
            groups: slices of units.
            budget: of the run's `Target`; None without one.
        """

    @property
    def is_due(self) -> bool:
        """Whether `next_open` would close units now, so that scores are worth computing."""
        return False

    def check(self, budget: PruningBudget | None) -> None:
        """Called when gates are put on a model; raises `ZerogateError` where the pruner cannot know how much is to stay."""

    def pruned_to(
        self, share: float, scores: Tensor, is_open: Tensor, groups: Sequence[Group], budget: PruningBudget | None
    ) -> Tensor | None:
        """The units that stay open where a `TicketSearch` asks for this share of the gates, or of the budget's dense count;
        other arguments as for `next_open`."""
        return None


class _MagnitudeState(TypedDict):
    steps_done: int
    steps: int | None
    in_rounds: bool


class Magnitude(Pruner):
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
        check_share("density, the share of gates that stays open,", density, optional=True)
        check(0 <= begin <= end <= 1, "begin and end", "shares of the run, 0 <= begin <= end <= 1", (begin, end))
        check_whole("every", every, optional=True)
        check_choice("scope", scope, get_args(Scope))
        check_whole("steps", steps, optional=True)
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

    @property
    def is_due(self) -> bool:
        return self.progress() is not None

    def next_open(
        self, scores: Tensor, is_open: Tensor, groups: Sequence[Group], budget: PruningBudget | None
    ) -> Tensor | None:
        k = self.progress()
        if k is None:
            return None
        final = self.final_share(budget)
        return self.pruned_to(Cubic(1.0, final, steps=1)(k), scores, is_open, groups, budget)

    def check(self, budget: PruningBudget | None) -> None:
        self.final_share(budget)

    def final_share(self, budget: PruningBudget | None) -> float:
        """The density, or the target's share, to end with.

        Raises `ZerogateError` unless one of the two is given."""
        if budget is not None and self.density is None:
            return budget.share
        if budget is None and self.density is not None:
            return self.density
        raise ZerogateError(
            "Magnitude takes a density or a Target, one of the two, got "
            + ("no density and no target" if budget is None else f"density={self.density} and a target")
        )

    def pruned_to(
        self, share: float, scores: Tensor, is_open: Tensor, groups: Sequence[Group], budget: PruningBudget | None
    ) -> Tensor:
        """The open units without those of the lowest scores, until this share of the gates, or of the budget's dense
        count, is left: bool [units]. Other arguments as for `next_open`."""
        scores = scores.masked_fill(~is_open, -1.0)
        if self.scope == "layer":
            scores = _ranks(scores, groups)
        order = scores.argsort(descending=True, stable=True)
        number = max(1, round(share * len(order))) if budget is None else budget.at(share).largest(order)
        stays = torch.zeros_like(is_open)
        stays[order[: min(number, int(is_open.sum()))]] = True
        return stays

    def get_extra_state(self) -> _MagnitudeState:
        return {"steps_done": self.steps_done, "steps": self.steps, "in_rounds": self.in_rounds}

    def set_extra_state(self, state: _MagnitudeState) -> None:
        self.steps_done, self.steps, self.in_rounds = state["steps_done"], state["steps"], state["in_rounds"]

    def extra_repr(self) -> str:
        begin, end = self.range
        return f"density={self.density}, begin={begin}, end={end}, scope={self.scope!r}, steps={self.steps}"


class Random(Pruner):
    """Closes units at random when gates are put on a model, the same share of every group: the baseline that knows nothing.

    Args:
        density: share of each group's gates that stays open, in (0, 1].

    Raises `ZerogateError` for another density. For the densities of another ticket layer by layer, harden gates with
    `Mask.shuffled` of it.
    """

    def __init__(self, density: float) -> None:
        super().__init__()
        check_share("density, the share of gates that stays open,", density)
        self.density = density

    def first_open(self, groups: Sequence[Group]) -> Tensor:
        is_open = torch.zeros(groups[-1].slice.stop, dtype=torch.bool)
        for group in groups:
            number = max(1, round(self.density * group.units))
            is_open[group.slice.start + torch.randperm(group.units)[:number]] = True
        return is_open

    def next_open(
        self, scores: Tensor, is_open: Tensor, groups: Sequence[Group], budget: PruningBudget | None
    ) -> Tensor | None:
        return None

    def extra_repr(self) -> str:
        return f"density={self.density}"


def _ranks(scores: Tensor, groups: Sequence[Group]) -> Tensor:
    """The rank of every unit within its group, from 1 for the highest score down to 1/units."""
    ranks = torch.empty_like(scores)
    for group in groups:
        order = scores[group.slice].argsort(descending=True, stable=True)
        ranks[group.slice][order] = 1 - torch.arange(group.units, device=scores.device) / group.units
    return ranks
