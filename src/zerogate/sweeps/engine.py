"""What a sweep consists of: tasks, the engine that carries them out, and what it reports.

`local.py` has the engines for one machine. One over Ray or submitit has to pickle tasks, call `Task.work` on them
elsewhere, and yield reports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

End = Literal["done", "failed", "left out", "taken", "done elsewhere"]
"""How a task ended here: `left out` since one that it needs failed, `taken` where another process is at it (it is looked at
again until that process has ended), `done elsewhere` when that process has done it."""


class TakenError(Exception):
    """Another process is at the work of this task."""


class Task(ABC):
    """A piece of work that keeps its state in files and goes on where it stopped when it is called again.

    A subclass is picklable and says what the work is; everything else has a default.

    Attributes:
        needs: names of the tasks that must have been done before.
        epochs: how long it is. kind: tasks of one kind take equally long for an epoch.
        log: the file to which its process prints; None: what it says is not kept, its errors go where ours go.
        outlives: whether its process goes on when the one that started it is killed. Only a task that locks its folder may.
    """

    needs: Sequence[str] = ()
    epochs: int = 1
    kind: Hashable = None
    log: Path | None = None
    outlives: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """As lines show it; one task of a sweep alone has it."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where its files are."""

    @abstractmethod
    def work(self) -> None:
        """Do it, or go on with it, in the process that calls this.

        Raises:
            StoppedError: a signal asked it to stop; what was done is kept.
            TakenError: another process is at it.
            ZerogateError, OSError: it cannot be done; the message says why.
        """

    def is_done(self) -> bool:
        """Whether its result is there."""
        return False

    def is_taken(self) -> bool:
        """Whether another process is at it."""
        return False

    def epochs_done(self) -> int:
        """Lines of metrics.csv, of all stages."""
        return sum(max(0, path.read_text().count("\n") - 1) for path in self.folder.rglob("metrics.csv"))


@dataclass(frozen=True)
class Ended:
    """A task that is no longer under way here."""

    task: Task
    how: End
    seconds: float = 0.0  # that its process took
    reason: str = ""  # why it failed or was left out
    killed: bool = False  # its process was, so that it could not say why it failed


@dataclass(frozen=True)
class Report:
    """Where a sweep is."""

    ended: tuple[Ended, ...]  # since the last report
    running: tuple[Task, ...]
    taken: tuple[Task, ...]  # by other processes
    waiting: int  # tasks that nobody has begun
    seconds_left: float  # until the last task ends, as far as that can be known
    uncounted: int  # tasks of a kind of which no epoch has been measured, left out of seconds_left
    stopping: bool = False  # a signal came: what runs saves where it is, and nothing more is begun


class Engine(Protocol):
    """Carries out the tasks of a sweep."""

    signum: int | None
    """The signal that stopped it; None as long as there was none."""

    def run(self, tasks: Sequence[Task]) -> Generator[Report]:
        """Carries out tasks, those that others need before these; a report after every change and once a minute.

        A task that fails stops nothing but what needs it. Closing the iterator stops what runs, which saves where it is.
        After SIGTERM or Ctrl-C the iterator ends when everything is saved, and `signum` says so.
        """
        ...
