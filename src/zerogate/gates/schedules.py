"""Schedules: frozen values, pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from zerogate.errors import ZerogateError


@dataclass(frozen=True)
class Exponential:
    """Geometric growth from ``start`` at step 0 to ``end`` at step ``steps``, constant after:
    start · (end/start)^(t/steps).

    Raises `ZerogateError` unless start and end are positive and finite and steps is at least 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ZerogateError(f"Exponential {name} must be positive and finite, got {value}")
        if self.steps < 1:
            raise ZerogateError(f"Exponential needs at least 1 step, got {self.steps}")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return self.end  # exactly, not up to rounding
        return self.start * (self.end / self.start) ** (max(step, 0) / self.steps)


@runtime_checkable
class Scheduled(Protocol):
    """A gate or an objective that follows the length of the run.

    Attributes:
        steps: optimizer steps of the run; None as long as nobody has said.
    """

    steps: int | None

    def set_steps(self, steps: int) -> None:
        """Says how many optimizer steps the run has."""
