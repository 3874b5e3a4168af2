"""The progress line of a run."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from zerogate.training.callbacks.files import RunFiles

_BAR = 10  # characters of the progress bar


class ProgressLine(Callback):
    """Shows one line for the whole run on a terminal, one line per epoch elsewhere; measures images per second.

    Args:
        files: has the rows of the run's epochs.
        total_steps: optimizer steps of the whole run.
        batch_size: images per batch.
        mode: auto (bar on a terminal, else plain), bar, plain or none.
    """

    def __init__(self, files: RunFiles, total_steps: int, batch_size: int, mode: str) -> None:
        self.files, self.total_steps, self.batch_size = files, total_steps, batch_size
        console = Console()
        self.mode = mode if mode != "auto" else ("bar" if console.is_terminal else "plain")
        self.images, self.seconds = 0, 0.0
        self._begun = self._mark = self._shown = 0.0
        self._first = 0
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(_BAR),
            TextColumn("{task.description}"),
            console=console,
        )
        # What is left for the text after two numbers, a stroke, the bar, and the blanks between the columns.
        self._width = console.width - 2 * len(str(total_steps)) - 1 - _BAR - 2
        self._task = self._bar.add_task("", total=total_steps)

    @property
    def images_per_second(self) -> float | None:
        """Speed of training, without validation and saving; None before the first step."""
        return self.images / self.seconds if self.seconds else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks."""
        self._begun = self._mark = time.perf_counter()
        self._first = trainer.global_step
        if self.mode == "bar":
            self._bar.start()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on measuring after validation, whose time does not count."""
        self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch to the measured speed; update the bar, twice a second at most."""
        now = time.perf_counter()
        self.images += len(batch[1])
        self.seconds += now - self._mark
        self._mark = now
        if self.mode == "bar" and now - self._shown > 0.5:
            self._shown = now
            train = float(pl_module.train_scores.accuracy.compute())
            self._bar.update(self._task, completed=trainer.global_step, description=self._text(trainer, train))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the scores of the epoch."""
        text = self._text(trainer, self.files.rows[-1]["train_accuracy"])
        if self.mode == "bar":
            self._bar.update(self._task, completed=trainer.global_step, description=text)
        elif self.mode == "plain":
            print(f"step {trainer.global_step}/{self.total_steps}  {text}", flush=True)
        self._mark = time.perf_counter()

    def _text(self, trainer: pl.Trainer, train: float) -> str:
        row = self.files.rows[-1] if self.files.rows else {}
        parts = {"epoch": f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", "train": f"train {train:.2%}"}
        if row:
            parts["val"] = f"val {row['val_accuracy']:.2%}"
        if "density_params" in row:
            parts |= {"params": f"params {row['density_params']:.1%}", "macs": f"macs {row['density_macs']:.1%}"}
        if self.images_per_second:
            parts["speed"] = f"{self.images_per_second:,.0f} images/s"
        done = trainer.global_step - self._first
        if done:
            seconds = (time.perf_counter() - self._begun) / done * (self.total_steps - trainer.global_step)
            parts["left"] = f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
        for name in ("macs", "speed", "epoch"):  # dropped first on a narrow terminal
            if self.mode == "bar" and len("  ".join(parts.values())) > self._width:
                parts.pop(name, None)
        return "  ".join(parts.values())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the terminal tidy, after an exception too."""
        if self.mode == "bar":
            self._bar.stop()
