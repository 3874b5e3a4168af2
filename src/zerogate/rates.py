"""Learning rates over a run: drops at shares of it, and schedules of their own for weights and gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from zerogate.errors import ConfigError


def drops(optimizer: Optimizer, at: Sequence[float], epochs: int, gamma: float = 0.1) -> MultiStepLR:
    """Multiplies the learning rates by ``gamma`` at these shares of a run, with the beginning of the epoch that they lie
    in: 0.66 and 0.84 of 85 epochs are epochs 56 and 71.

    Raises `ConfigError` for shares outside of (0, 1)."""
    for share in at:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise ConfigError(f"at={list(at)} are shares of the run, between 0 and 1, got {share}")
    # A share such as 0.29 of 100 epochs must not fall short of its epoch by rounding.
    return MultiStepLR(optimizer, [max(1, math.floor(share * epochs + 1e-9)) for share in at], gamma)


class Apart(LRScheduler):
    """A schedule of its own for each named parameter group of an optimizer.

    Args:
        optimizer: its groups have a ``name``.
        make: makes the schedule of a group from an optimizer of that group alone, by the group's name.
    """

    def __init__(self, optimizer: Optimizer, make: Mapping[str, Callable[[Optimizer], LRScheduler]]) -> None:
        self.optimizer = optimizer
        self._of = {name: made(_Group(optimizer, name)) for name, made in make.items()}

    def step(self, epoch: int | None = None) -> None:
        """Moves all of them on."""
        for schedule in self._of.values():
            schedule.step()

    def get_last_lr(self) -> list[Any]:
        """The learning rates that were set last, of all groups of the optimizer."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The states of the schedules, by the name of their group."""
        return {name: schedule.state_dict() for name, schedule in self._of.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for name, schedule in self._of.items():
            schedule.load_state_dict(state_dict[name])


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
