"""How long the tasks of a sweep will still take, from how long epochs of their kinds took."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence

from zerogate.sweeps.engine import Task


class Paces:
    """Seconds for an epoch, by kind of task.

    Args:
        known: what was measured before, by kind.
    """

    def __init__(self, known: Mapping[Hashable, Sequence[float]] | None = None) -> None:
        self._measured = {kind: list(seconds) for kind, seconds in (known or {}).items()}

    def add(self, task: Task, seconds: float, epochs: int) -> None:
        """Takes note that so many epochs of this task took so many seconds. A task without epochs counts as one epoch."""
        if epochs > 0 or not task.epochs:
            self._measured.setdefault(task.kind, []).append(seconds / max(epochs, 1))

    def of(self, task: Task) -> float | None:
        """The median of its kind; None where none has been measured."""
        measured = self._measured.get(task.kind)
        return statistics.median(measured) if measured else None


def seconds_left(
    running: Sequence[Task], waiting: Sequence[Task], pace_of: Callable[[Task], float | None], workers: int
) -> tuple[float, int]:
    """When the last of these tasks will end, if each begins as soon as a process is free and what it needs is done.

    Args:
        running, waiting: the tasks, in the order in which they will begin.
        pace_of: a task's seconds for an epoch; None where they are not known.
        workers: processes.

    Returns:
        Seconds from now, and how many tasks of an unknown pace they leave out.
    """
    seconds: dict[str, float] = {}
    for task in [*running, *waiting]:
        pace = pace_of(task)
        if pace is not None:
            seconds[task.name] = pace * max(max(task.epochs, 1) - task.epochs_done(), 0)
    to_begin = [task for task in [*running, *waiting] if task.name in seconds]
    uncounted = len(running) + len(waiting) - len(to_begin)
    now, ends = 0.0, dict[str, float]()  # when what is under way will end, by name
    while to_begin or ends:
        undone = {task.name for task in to_begin} | ends.keys()
        ready = [task for task in to_begin if undone.isdisjoint(task.needs)]
        for task in ready[: workers - len(ends)]:
            to_begin.remove(task)
            ends[task.name] = now + seconds[task.name]
        first = min(ends, key=lambda name: ends[name])
        now = ends.pop(first)
    return now, uncounted
