"""Engines for this machine: tasks in processes of their own, several at once, or one after the other in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait

from zerogate.sweeps.engine import Ended, Report, Task
from zerogate.sweeps.estimate import Paces, seconds_left
from zerogate.sweeps.process import FAILED, TAKEN, Running, start
from zerogate.training.interruption import StoppedError

TICK = 0.2
"""Seconds between looks at tasks that other processes have taken; the end of a process is noticed at once."""
MINUTE = 60.0
"""Seconds after which a report is due although nothing has changed."""


class Processes:
    """Tasks in processes of their own.

    Args:
        workers: processes at once. threads: of each.
        known: seconds for an epoch by kind of task, as measured before.
        preload: modules that tasks need, imported once for all processes.
    """

    def __init__(self, workers: int, threads: int = 1, known: Mapping[Hashable, Sequence[float]] | None = None,
                 preload: Sequence[str] = ("zerogate.sweeps.preloaded",)) -> None:  # fmt: skip
        self.workers, self.threads, self.preload = workers, threads, tuple(preload)
        self.paces = Paces(known)
        self.signum: int | None = None
        self._waiting: list[Task] = []
        self._running: list[Running] = []
        self._taken: list[Task] = []
        self._failed: set[str] = set()

    def run(self, tasks: Sequence[Task]) -> Generator[Report]:
        """See `Engine.run`."""
        self._waiting = list(tasks)
        reported, told = 0.0, False
        with self._signals():
            try:
                while self._running or (self.signum is None and (self._waiting or self._taken)):
                    ended = self._collect()
                    begun = False
                    if self.signum is None:
                        ended += self._look_at_taken()
                        ended += self._leave_out()
                        begun = self._begin_next()
                    stopping = self.signum is not None and not told
                    if stopping:
                        self._stop_all()  # what was just being started when the signal came
                    if ended or begun or stopping or time.monotonic() - reported > MINUTE:
                        reported, told = time.monotonic(), told or stopping
                        yield self.report(ended, stopping)
                    wait([running.process.sentinel for running in self._running], TICK)
            finally:
                self._stop_all()
                for running in self._running:
                    running.process.join()

    def report(self, ended: Sequence[Ended] = (), stopping: bool = False) -> Report:
        """Where the sweep is now."""
        running = tuple(each.task for each in self._running)
        seconds, uncounted = seconds_left(running, self._waiting, self._pace, self.workers)
        return Report(tuple(ended), running, tuple(self._taken), len(self._waiting), seconds, uncounted, stopping)

    def _pace(self, task: Task) -> float | None:
        """Seconds for an epoch of such a task, from those that have ended, or else from those that run."""
        now = Paces()
        for running in self._running:
            if (done := running.task.epochs_done() - running.epochs_before) > 0:
                now.add(running.task, running.seconds(), done)
        ended = self.paces.of(task)
        return now.of(task) if ended is None else ended

    # what runs

    def _begin_next(self) -> bool:
        begun = False
        undone = {task.name for task in [*self._waiting, *self._taken, *(each.task for each in self._running)]}
        for task in list(self._waiting):
            if len(self._running) >= self.workers or self.signum is not None:
                break
            if undone.isdisjoint(task.needs):
                self._waiting.remove(task)
                self._running.append(start(task, self.threads, self.preload))
                begun = True
        return begun

    def _collect(self) -> list[Ended]:
        """The tasks whose processes have ended. Those that a signal stopped wait again."""
        ended = []
        for running in [each for each in self._running if not each.process.is_alive()]:
            self._running.remove(running)
            task, code = running.task, running.process.exitcode
            seconds = running.seconds()
            if code == 0:
                self.paces.add(task, seconds, task.epochs - running.epochs_before)
                ended.append(Ended(task, "done", seconds))
            elif code == TAKEN and self.signum is None:
                self._taken.append(task)
                ended.append(Ended(task, "taken", seconds))
            elif self.signum is None or code == FAILED:
                self._failed.add(task.name)
                killed = code is not None and code < 0
                ended.append(Ended(task, "failed", seconds, running.reason(), killed))
            else:
                self._waiting.insert(0, task)
            running.told.close()
            running.process.close()
        return ended

    def _look_at_taken(self) -> list[Ended]:
        """What other processes have done; what they have left undone is ours to do."""
        ended = []
        for task in [task for task in self._taken if not task.is_taken()]:
            self._taken.remove(task)
            if task.is_done():
                ended.append(Ended(task, "done elsewhere"))
            else:
                self._waiting.insert(0, task)
        return ended

    def _leave_out(self) -> list[Ended]:
        """The tasks that cannot be done any more, since others that they need have failed."""
        ended = []
        for task in list(self._waiting):
            if lacking := [name for name in task.needs if name in self._failed]:
                self._waiting.remove(task)
                self._failed.add(task.name)
                ended.append(Ended(task, "left out", reason=f"needs {', '.join(lacking)}"))
        return ended

    # signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While it is open, SIGTERM and Ctrl-C stop the sweep. Threads cannot receive signals; there, nothing changes."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            previous = {signum: signal.signal(signum, self._stop) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _stop(self, signum: int, frame: object) -> None:
        self.signum = signum
        self._stop_all()

    def _stop_all(self) -> None:
        for running in self._running:
            running.stop()


class ThisProcess:
    """Tasks one after the other in the process that asks, for a caller that ends with the first that fails: what a task
    raises, `run` raises."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.paces = Paces()

    def run(self, tasks: Sequence[Task]) -> Generator[Report]:
        """See `Engine.run`."""
        for number, task in enumerate(tasks, start=1):
            begun, before = time.monotonic(), task.epochs_done()
            try:
                task.work()
            except StoppedError as stop:
                self.signum = stop.signum
                return
            took = time.monotonic() - begun
            self.paces.add(task, took, task.epochs - before)
            waiting = tasks[number:]
            seconds, uncounted = seconds_left((), waiting, self.paces.of, workers=1)
            yield Report((Ended(task, "done", took),), (), (), len(waiting), seconds, uncounted)
