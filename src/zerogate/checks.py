"""Checks of arguments: one wording for what was expected and what was received.

A predicate (`is_whole`, …) answers; a check (`check_whole`, …) raises `ZerogateError` naming the argument, what it takes and
the value received.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any, TypeGuard

from zerogate.errors import ZerogateError


def is_whole(value: Any, least: int | None = 1) -> TypeGuard[int]:
    """Whether a value is an int, and no bool, of at least ``least`` (None: of any size); NumPy's would not survive in a
    checkpoint."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number, and no bool; NumPy's count."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def is_share(value: Any) -> TypeGuard[float]:
    """Whether a value is a number in (0, 1]."""
    return is_number(value) and 0 < value <= 1


def check(fits: bool, name: str, expected: str, value: Any, way_out: str = "") -> None:
    """Raises `ZerogateError` unless ``fits``: ``name`` must be ``expected``, got the value; and the way out, if one is
    given that ``expected`` does not say."""
    if not fits:
        raise ZerogateError(f"{name} must be {expected}, got {value!r}{way_out and '; '}{way_out}")


def check_whole(name: str, value: Any, least: int = 1, optional: bool = False, way_out: str = "") -> None:
    """Raises `ZerogateError` unless the value is a whole number of at least ``least``, or None where it is optional."""
    fits = (optional and value is None) or is_whole(value, least)
    check(fits, name, f"a whole number of at least {least}{', or None' if optional else ''}", value, way_out)


def check_share(name: str, value: Any, optional: bool = False) -> None:
    """Raises `ZerogateError` unless the value is a number in (0, 1], or None where it is optional."""
    fits = (optional and value is None) or is_share(value)
    check(fits, name, f"a share in (0, 1]{', or None' if optional else ''}", value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises `ZerogateError` unless the value is one of the choices."""
    check(value in choices, name, f"one of {', '.join(choices)}", value)
