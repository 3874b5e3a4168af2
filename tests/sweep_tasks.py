"""Tasks that take no time, for tests of engines; here, since a process imports the class of its task."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from zerogate.errors import ZerogateError
from zerogate.sweeps.engine import Task
from zerogate.training.interruption import StoppedError
from zerogate.training.run_folder import RunFolder


@dataclass(frozen=True)
class Counting(Task):
    """Counts epochs into metrics.csv, from where it stopped.

    `fault`: `refuses` (an error of ours), `breaks` (a bug), `is killed`, or `waits` (for a signal, at the second epoch).
    """

    label: str
    at: Path
    epochs: int = 3
    needs: tuple[str, ...] = ()
    fault: str = ""

    @property
    def name(self) -> str:
        """As the test calls it."""
        return self.label

    @property
    def folder(self) -> Path:
        """Where the test puts it."""
        return self.at

    def work(self) -> None:
        """Notes how many threads it has, then counts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "threads").write_text(str(torch.get_num_threads()))
        signals: list[int] = []
        previous = signal.signal(signal.SIGTERM, lambda signum, frame: signals.append(signum))
        try:
            for epoch in range(self.epochs_done(), self.epochs):
                self._write(epoch)
                if self.fault == "refuses":
                    raise ZerogateError("it is\nnot possible")
                if self.fault == "breaks":
                    raise KeyError("gone")
                if self.fault == "is killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                while self.fault == "waits" and epoch == 1 and not signals:
                    time.sleep(0.01)
                if signals:
                    raise StoppedError(signals[0], RunFolder(self.folder))
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _write(self, epoch: int) -> None:
        with open(self.folder / "metrics.csv", "a") as file:
            file.write("epoch\n" * (epoch == 0) + f"{epoch}\n")

    def is_done(self) -> bool:
        """Whether all epochs are counted."""
        return self.epochs_done() == self.epochs
