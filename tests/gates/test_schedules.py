"""Schedules against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

import zerogate as zg
from zerogate.gates.schedules import Cubic


@pytest.mark.parametrize(("start", "end", "steps"), [(1.0, 200.0, 10), (3.0, 0.5, 7), (2, 2, 1)])
def test_exponential_grows_geometrically_and_stays_at_its_end(start: float, end: float, steps: int) -> None:
    schedule = zg.Exponential(start, end, steps)
    for t in range(steps + 1):
        share = t / steps
        assert schedule(t) == pytest.approx(math.exp((1 - share) * math.log(start) + share * math.log(end)), rel=1e-12)
    assert schedule(steps) == schedule(steps + 5) == end
    assert schedule(-1) == start


@pytest.mark.parametrize(("start", "end", "steps"), [(1.0, 0.1, 10), (0.8, 0.25, 3), (1, 0.05, 1)])
def test_cubic_follows_the_law_of_gradual_pruning(start: float, end: float, steps: int) -> None:
    """Zhu and Gupta, eq. 1, is of the sparsity: s_t = s_f + (s_i − s_f)·(1 − t/n)³."""
    schedule = Cubic(start, end, steps)
    for t in range(steps + 1):
        sparsity = (1 - end) + ((1 - start) - (1 - end)) * (1 - t / steps) ** 3
        assert schedule(t) == pytest.approx(1 - sparsity, rel=1e-12)
    assert schedule(0) == pytest.approx(start, rel=1e-15)
    assert schedule(steps) == schedule(steps + 5) == end
    assert schedule(-1) == schedule(0)


def test_cubic_without_steps_is_at_its_end_from_the_beginning() -> None:
    assert Cubic(1.0, 0.3, 0)(0) == 0.3


def test_schedules_are_values() -> None:
    for schedule in (zg.Exponential(1.0, 2.0, 3), Cubic(1.0, 0.5, 3)):
        assert schedule == type(schedule)(schedule.start, schedule.end, schedule.steps)
        with pytest.raises(FrozenInstanceError):
            schedule.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: zg.Exponential(1.0, -2.0, 3), "-2.0"),
        (lambda: zg.Exponential(math.nan, 2.0, 3), "nan"),
        (lambda: zg.Exponential(1.0, 2.0, 0), "0"),
        (lambda: Cubic(math.inf, 0.5, 3), "inf"),
        (lambda: Cubic(1.0, 0.5, -1), "-1"),
        (lambda: Cubic(1.0, 0.5, 2.5), "2.5"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(make: Callable[[], object], value: str) -> None:
    with pytest.raises(zg.ZerogateError, match=f"got '?{value}"):
        make()
