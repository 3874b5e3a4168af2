"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from zerogate.training.callbacks.files import RunFiles
from zerogate.training.interruption import StoppedError

Handler = Callable[[int, FrameType | None], object] | int | None
"""What Python keeps for a signal: a function, one of its constants, or None for a handler that is not Python's."""


class StopOnSignal(Callback):
    """Ends the run at SIGTERM and Ctrl-C after the step that it is in, with last.ckpt written; a second Ctrl-C ends it at
    once.

    Inside an epoch the step ends where Lightning counts a batch as done. After the last batch of an epoch the run still
    validates, so that the epoch is complete and its own checkpoint serves.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.signum: int | None = None
        self._previous: dict[int, Handler] = {}

    def _receive(self, signum: int, frame: object) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                previous = signal.signal(signum, self._receive)
                self._previous.setdefault(signum, previous)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Handle signals from before the first step on."""
        self._install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the handler that Lightning has installed, which would end the run between two checkpoints."""
        self._install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save and stop, if asked to and the step is complete."""
        last = trainer.should_stop or batch_idx + 1 == trainer.num_training_batches
        if self.signum is not None and not last and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.files.save(trainer, pl_module)
            raise StoppedError(self.signum, self.files.run)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, if asked to; `RunFiles` comes before this callback and has saved."""
        if self.signum is not None:
            raise StoppedError(self.signum, self.files.run)

    def release(self) -> None:
        """Restore the handlers that were there before."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()
