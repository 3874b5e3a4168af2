"""Learning rates over a run: drops at shares of it, and a schedule for one parameter group alone. Imports torch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from zerogate.checks import is_number
from zerogate.errors import ConfigError


class MultiStepByShare(MultiStepLR):
    """A `MultiStepLR` that is stepped once an optimizer step: its milestones are optimizer steps."""

    interval = "step"


def drops(optimizer: Optimizer, at: Sequence[float], steps: int, gamma: float = 0.1) -> MultiStepByShare:
    """Multiplies all learning rates by ``gamma`` at each of some shares of a run.

    With at=[0.66] and steps=1000 the first 660 steps have the whole rate, the others gamma times that.

    Args:
        at: shares of the run, in (0, 1).
        steps: optimizer steps of the run.

    Raises:
        ConfigError: a share outside of (0, 1).
    """
    for share in at:
        if not is_number(share) or not 0 < share < 1:
            raise ConfigError(f"at={list(at)} are shares of the run, between 0 and 1, got {share}")
    # A milestone is ceil(share · steps): without the 1e-6, 0.07 · 100 = 7.000000000000001 would become step 8.
    return MultiStepByShare(optimizer, [max(1, math.ceil(share * steps - 1e-6)) for share in at], gamma)


def interval(schedule: LRScheduler) -> str:
    """How often a schedule is stepped: once a ``step`` of the optimizer, or once an ``epoch``."""
    return str(getattr(schedule, "interval", "epoch"))


class GroupSchedule(LRScheduler):
    """The schedule of one named parameter group of an optimizer; the learning rates of all others stay as they are.

    Args:
        optimizer: its parameter groups have a ``name``.
        name: the group that is scheduled.
        make: makes the schedule from an optimizer that has this group alone.
    """

    def __init__(self, optimizer: Optimizer, name: str, make: Callable[[Optimizer], LRScheduler]) -> None:
        self.optimizer = optimizer
        self._schedule = make(_GroupView(optimizer, name))
        self.interval = interval(self._schedule)

    def step(self, epoch: int | None = None) -> None:
        """Moves the schedule on by one step or epoch."""
        self._schedule.step()

    def get_last_lr(self) -> list[Any]:
        """The learning rates in force, one for each group of the optimizer."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The state of the group's schedule."""
        return self._schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._schedule.load_state_dict(state_dict)


class _GroupView(Optimizer):
    """One parameter group of an optimizer, as an optimizer that takes no steps: a schedule made of it sees no other."""

    def __init__(self, optimizer: Optimizer, name: str) -> None:
        self._optimizer, self._name = optimizer, name
        self.defaults = optimizer.defaults
        # Schedules warn if they are stepped before their optimizer, which takes its steps elsewhere.
        self._opt_called = True

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Looked up each time, since loading a state makes new groups."""
        return [group for group in self._optimizer.param_groups if group["name"] == self._name]

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Raises `NotImplementedError`."""
        raise NotImplementedError("the whole optimizer takes the steps")
