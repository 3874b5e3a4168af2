"""Schedules: frozen values, pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

from zerogate.checks import check, check_whole, is_number


@runtime_checkable
class Scheduled(Protocol):
    """What follows a schedule over the whole run and must be told how long that is; a gate or an objective.

    Attributes:
        steps: optimizer steps of the run; None where nobody has said so yet.
    """

    steps: int | None

    def set_steps(self, steps: int) -> None:
        """Says how many optimizer steps the run has."""


class ScheduleState(TypedDict):
    """Where a schedule stands, as checkpoints hold it."""

    steps_done: int
    steps: int | None


@dataclass(frozen=True)
class Exponential:
    """Geometric growth from ``start`` at step 0 to ``end`` at step ``steps``, constant after:
    start · (end/start)^(t/steps).

    Raises `ZerogateError` unless start and end are positive and finite and steps is a whole number of at least 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            check(is_number(value) and value > 0, f"Exponential {name}", "positive and finite", value)
        check_whole("Exponential steps", self.steps)

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end  # exactly, not up to rounding
        return self.start * (self.end / self.start) ** (max(step, 0) / self.steps)


@dataclass(frozen=True)
class Cubic:
    """From ``start`` at step 0 to ``end`` at step ``steps``, fast at first and slower and slower, constant after:
    end + (start − end) · (1 − t/steps)³. The law of gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878, eq. 1).

    With ``steps=0`` it is at its end from the beginning.
    Raises `ZerogateError` unless start and end are finite and steps is a whole number of at least 0.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            check(is_number(value), f"Cubic {name}", "a finite number", value)
        check_whole("Cubic steps", self.steps, least=0)

    def __call__(self, step: float) -> float:
        if step >= self.steps:
            return self.end
        return self.end + (self.start - self.end) * (1 - max(step, 0) / self.steps) ** 3


def share_steps(first: object, second: object) -> None:
    """Of two that may be scheduled, the one that knows how long the run is tells the other."""
    if isinstance(first, Scheduled) and isinstance(second, Scheduled):
        if second.steps is None and first.steps is not None:
            second.set_steps(first.steps)
        elif first.steps is None and second.steps is not None:
            first.set_steps(second.steps)
