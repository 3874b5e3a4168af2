"""What watches a training run: its files, its TensorBoard log, its progress line, and signals that ask it to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from zerogate.report.count import target_row
from zerogate.training.classifier import Classifier
from zerogate.training.run_folder import Run, write_csv

COLUMNS = (
    "epoch", "step", "train_loss", "train_cross_entropy", "train_l0", "train_accuracy", "val_loss", "val_accuracy",
    "density_params", "density_macs", "expected_density_params", "expected_density_macs",
    "temperature", "lr", "gate_lr",
)  # fmt: skip
_BAR = 10  # characters of the progress bar


class StoppedError(Exception):
    """A signal asked the run to stop, and last.ckpt holds it as it was then."""

    def __init__(self, signum: int, run: Run) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.run = signum, run


def densities(sparse: Any) -> dict[str, float]:
    """Deployed and expected share of the dense network's parameters and MACs."""
    dense, deployed, expected = sparse.dense_cost, sparse.cost(hard=True), sparse.cost(hard=False)
    return {
        "density_params": deployed.params / dense.params,
        "density_macs": deployed.macs / dense.macs,
        "expected_density_params": float(expected.params.detach()) / dense.params,
        "expected_density_macs": float(expected.macs.detach()) / dense.macs,
    }


class RunFiles(Callback):
    """After every epoch: a row of metrics.csv, best.ckpt if validation accuracy rose, and last.ckpt.

    Networks that meet the target, if there is one, are better than those that do not.

    The rows are part of the checkpoints, so that metrics.csv is always the history of the weights beside it.

    Args:
        run: its folder; total_steps: its optimizer steps.
        keep_best: whether to write best.ckpt at all. Stages of a search hand on what they end with.
    """

    state_key = "RunFiles"  # its name in checkpoints, which stays whatever the class is called

    def __init__(self, run: Run, total_steps: int, keep_best: bool = True) -> None:
        self.run, self.total_steps, self.keep_best = run, total_steps, keep_best
        self.rows: list[dict[str, Any]] = []
        self.fits, self.best = False, -1.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of the past."""
        return {"rows": self.rows, "best": self.best, "fits": self.fits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the past back."""
        self.rows, self.best = list(state_dict["rows"]), state_dict["best"]
        self.fits = state_dict.get("fits", True)  # checkpoints of before there were targets have none

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """End the run where its last step lies inside an epoch, with what its target asks for."""
        if trainer.global_step >= self.total_steps and not trainer.should_stop:
            trainer.should_stop = True  # validates first, unlike Lightning's own max_steps
            pl_module.finish()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count the epoch and save."""
        module: Classifier = pl_module
        train, val = module.train_scores.compute(), module.val_scores.compute()
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {f"train_{key}": train[key] for key in ("loss", "cross_entropy", "l0", "accuracy")}
        row |= {"val_loss": val["loss"], "val_accuracy": val["accuracy"]}
        if module.sparse is not None:
            row |= densities(module.sparse)
            row["temperature"] = temperature(module)
        row |= {"lr": module.rates["weights"], "gate_lr": module.rates.get("gates")}
        self.rows.append(row)
        sparse = module.sparse
        reached = None if sparse is None else target_row(sparse.objective, sparse.is_open(), sparse.cost_model)
        fits = reached is None or reached.reached <= reached.share
        if (fits, val["accuracy"]) > (self.fits, self.best):
            self.fits, self.best = fits, val["accuracy"]
            # Before last.ckpt: a run killed in between repeats this epoch and writes the same file again.
            if self.keep_best:
                self.save(trainer, module, best=True)
        self.save(trainer, module)
        self.write_metrics()

    def save(self, trainer: pl.Trainer, module: Classifier, best: bool = False) -> None:
        """Write last.ckpt or best.ckpt, unless the weights are no longer finite."""
        module.check_finite()
        trainer.save_checkpoint(self.run.best if best else self.run.last)

    def write_metrics(self) -> None:
        """Write metrics.csv anew from the rows."""
        write_csv(self.run.metrics, COLUMNS, self.rows)


def temperature(module: Classifier) -> float | None:
    """The gates' temperature where it moves (a buffer of the gate), else None."""
    buffers = dict(module.sparse.gate.named_buffers()) if module.sparse is not None else {}
    return float(buffers["temperature"]) if "temperature" in buffers else None


class StopOnSignal(Callback):
    """SIGTERM and Ctrl-C end the run after the step it is in, with last.ckpt written; a second Ctrl-C ends it at once.

    Inside an epoch that is where Lightning counts a batch as done. Behind an epoch's last batch the run still
    validates, so that the epoch is complete; the checkpoint of its end then serves.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def _receive(self, signum: int, frame: Any) -> None:
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                previous = signal.signal(signum, self._receive)
                self._previous.setdefault(signum, previous)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Listen from before the first step."""
        self._install()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen alone: Lightning has put its own handler on top, which would end the run between two checkpoints."""
        self._install()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save and stop, if asked to and the step is complete."""
        last = trainer.should_stop or batch_idx + 1 == trainer.num_training_batches
        if self.signum is not None and not last and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.files.save(trainer, pl_module)
            raise StoppedError(self.signum, self.files.run)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Stop, if asked to; `RunFiles` comes before and has saved."""
        if self.signum is not None:
            raise StoppedError(self.signum, self.files.run)

    def release(self) -> None:
        """Give the signals back to whom they belonged."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()


class TensorBoardLog(Callback):
    """Losses, learning rates and temperature every few steps; accuracy, densities and gate histograms every epoch."""

    def __init__(self, files: RunFiles, every: int) -> None:
        self.files, self.every = files, every
        self._writer: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open an events file; what an earlier one logged beyond the step resumed from is void."""
        from torch.utils.tensorboard import SummaryWriter

        step = trainer.global_step
        self._writer = SummaryWriter(str(self.files.run), purge_step=step + 1 if step else None)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log a step."""
        step = trainer.global_step
        if step % self.every == 0:
            scalars: dict[str, float | None] = {f"train/{key}": float(value) for key, value in pl_module.last.items()}
            scalars |= {f"learning_rate/{key}": value for key, value in pl_module.rates.items()}
            scalars["gates/temperature"] = temperature(pl_module)
            self._log(scalars, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log an epoch."""
        row, sparse = self.files.rows[-1], pl_module.sparse
        scalars = {f"accuracy/{split}": row[f"{split}_accuracy"] for split in ("train", "val")}
        scalars["val/loss"] = row["val_loss"]
        if sparse is not None:
            scalars |= {f"density/{key.replace('density_', '')}": row[key] for key in row if "density" in key}
            probability = sparse.open_probability()
            for group in sparse.groups:
                self._writer.add_histogram(f"open_probability/{group.name}", probability[group.slice], row["step"])
        self._log(scalars, row["step"])
        self._writer.flush()

    def _log(self, scalars: Mapping[str, float | None], step: int) -> None:
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Close the file, after an exception too."""
        if self._writer is not None:
            self._writer.close()


class ProgressLine(Callback):
    """One line for the whole run on a terminal, one line per epoch elsewhere; measures images per second.

    Args:
        files: holds the rows; total_steps: of the whole run; batch_size: images per batch.
        mode: auto, bar, plain or none.
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
        # What stands before the text: two numbers, a stroke, the bar, and the blanks between the columns.
        self._room = console.width - 2 * len(str(total_steps)) - 1 - _BAR - 2
        self._task = self._bar.add_task("", total=total_steps)

    @property
    def images_per_second(self) -> float | None:
        """Training speed, validation and saving not counted; None before the first step."""
        return self.images / self.seconds if self.seconds else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clocks."""
        self._begun = self._mark = time.perf_counter()
        self._first = trainer.global_step
        if self.mode == "bar":
            self._bar.start()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave validation out of the speed."""
        self._mark = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and show twice a second at most."""
        now = time.perf_counter()
        self.images += len(batch[1])
        self.seconds += now - self._mark
        self._mark = now
        if self.mode == "bar" and now - self._shown > 0.5:
            self._shown = now
            train = float(pl_module.train_scores.accuracy.compute())
            self._bar.update(self._task, completed=trainer.global_step, description=self._text(trainer, train))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the epoch's figures."""
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
            left = (time.perf_counter() - self._begun) / done * (self.total_steps - trainer.global_step)
            parts["left"] = f"{int(left) // 60}:{int(left) % 60:02d} left"
        for name in ("macs", "speed", "epoch"):  # what a narrow terminal can do without
            if self.mode == "bar" and len("  ".join(parts.values())) > self._room:
                parts.pop(name, None)
        return "  ".join(parts.values())

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the terminal tidy, after an exception too."""
        if self.mode == "bar":
            self._bar.stop()
