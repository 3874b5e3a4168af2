"""Estimates of what is left of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep_tasks import Counting
from zerogate.sweeps.estimate import Paces, seconds_left

NOWHERE = Path("no/such/folder")


@pytest.mark.parametrize(("workers", "seconds"), [(1, 30.0), (2, 16.0), (3, 16.0)])
def test_time_left_is_that_of_the_longest_chain(workers: int, seconds: float) -> None:
    """Of 2 seconds an epoch: a 8 s, then b 6 s and c 2 s after it; d 14 s by itself."""
    tasks = [Counting("a", NOWHERE, 4), Counting("b", NOWHERE, 3, ("a",)), Counting("c", NOWHERE, 1, ("b",)),
             Counting("d", NOWHERE, 7)]  # fmt: skip
    assert seconds_left((), tasks, lambda task: 2.0, workers) == (seconds, 0)


def test_what_is_done_and_what_is_unknown_does_not_count(tmp_path: Path) -> None:
    half, unknown = Counting("half", tmp_path, 4), Counting("unknown", NOWHERE, 4)
    half._write(0)
    half._write(1)
    assert seconds_left([half], [unknown], lambda task: 3.0 if task is half else None, 1) == (6.0, 1)


def test_a_pace_is_the_median_of_its_kind() -> None:
    task, paces = Counting("a", NOWHERE), Paces({None: [1.0, 2.0]})
    paces.add(task, 30.0, 3)
    assert paces.of(task) == 2.0
    paces.add(task, 100.0, 0)  # nothing was trained: that says nothing of an epoch
    assert paces.of(task) == 2.0 and Paces().of(task) is None
    timed = Counting("timed", NOWHERE, epochs=0)
    other = Paces()
    other.add(timed, 7.0, 0)
    assert other.of(timed) == 7.0
