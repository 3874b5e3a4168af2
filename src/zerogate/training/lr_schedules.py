"""Learning rates over a run: drops at shares of it, and schedules of their own for weights and gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from zerogate.errors import ConfigError


class Drops(MultiStepLR):
    """A `MultiStepLR` whose milestones are optimizer steps."""

    interval = "step"


def drops(optimizer: Optimizer, at: Sequence[float], steps: int, gamma: float = 0.1) -> Drops:
    """Multiplies the learning rates by ``gamma`` at these shares of a run of so many optimizer steps: with at=[0.66] and
    1,000 steps the first 660 have the whole rate.

    Raises `ConfigError` for shares outside of (0, 1)."""
    for share in at:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ConfigError(f"at={list(at)} are shares of the run, between 0 and 1, got {share}")
    # A share such as 0.07 of 100 steps must not lie a step late by rounding.
    return Drops(optimizer, [max(1, math.ceil(share * steps - 1e-6)) for share in at], gamma)


def interval(schedule: LRScheduler) -> str:
    """What a schedule counts: `step` or `epoch`."""
    return str(getattr(schedule, "interval", "epoch"))


class Apart(LRScheduler):
    """The schedule of one named parameter group of an optimizer; the others are left alone.

    Args:
        optimizer: its groups have a ``name``.
        name: of the group. make: makes the schedule from an optimizer of that group alone.
    """

    def __init__(self, optimizer: Optimizer, name: str, make: Callable[[Optimizer], LRScheduler]) -> None:
        self.optimizer = optimizer
        self._of = make(_Group(optimizer, name))
        self.interval = interval(self._of)

    def step(self, epoch: int | None = None) -> None:
        """Moves it on."""
        self._of.step()

    def get_last_lr(self) -> list[Any]:
        """The learning rates that were set last, of all groups of the optimizer."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The schedule's own."""
        return self._of.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._of.load_state_dict(state_dict)


class _Group(Optimizer):
    """One parameter group of an optimizer, for a schedule that is to see no other; it takes no steps."""

    def __init__(self, whole: Optimizer, name: str) -> None:
        self._whole, self._name = whole, name
        self.defaults = whole.defaults
        self._opt_called = True  # schedules warn where they are stepped before their optimizer, which is another one

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Looked up each time: loading a state makes new ones."""
        return [group for group in self._whole.param_groups if group["name"] == self._name]

    def step(self, closure: Any = None) -> Any:
        raise NotImplementedError("the whole optimizer takes the steps")
