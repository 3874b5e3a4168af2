"""Points in a run, stated in epochs and optimizer steps."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zerogate.checks import check_whole
from zerogate.errors import ZerogateError

_TEXT = re.compile(r"(?:(\d+)ep)?(?:(\d+)it)?")


@dataclass(frozen=True)
class Time:
    """A point in a run, or a length of it: so many epochs, and so many optimizer steps (iterations) after these.

    ``Time.of("2ep")``, ``Time.of("1500it")``, ``Time.of("2ep100it")``; printed the same way.

    Raises `ZerogateError` for negative numbers and for what is not a whole number.
    """

    epochs: int = 0
    iterations: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations"):
            check_whole(f"{name} of a time", getattr(self, name), least=0)

    @classmethod
    def of(cls, value: str | Time) -> Time:
        """A time from its text; a `Time` is returned as it is.

        Raises `ZerogateError` for a text that is not one."""
        if isinstance(value, Time):
            return value
        found = _TEXT.fullmatch(value.strip()) if isinstance(value, str) and value.strip() else None
        if found is None:
            raise ZerogateError(f'a time is written "2ep", "1500it" or "2ep100it", got {value!r}')
        return cls(int(found[1] or 0), int(found[2] or 0))

    def steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps from the beginning."""
        return self.epochs * steps_per_epoch + self.iterations

    def __str__(self) -> str:
        parts = (f"{self.epochs}ep" if self.epochs else "", f"{self.iterations}it" if self.iterations else "")
        return "".join(parts) or "0it"
