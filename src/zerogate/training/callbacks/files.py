"""The files of a run that grow with its epochs: metrics.csv, last.ckpt and best.ckpt."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from zerogate.report.count import target_row
from zerogate.sparsified import Sparsified
from zerogate.training.classifier import Classifier
from zerogate.training.costs import densities
from zerogate.training.run_folder import RunFolder, write_csv

COLUMNS = (
    "epoch", "step", "train_loss", "train_cross_entropy", "train_l0", "train_accuracy", "val_loss", "val_accuracy",
    "density_params", "density_macs", "expected_density_params", "expected_density_macs",
    "temperature", "lr", "gate_lr",
)  # fmt: skip
"""Columns of metrics.csv."""


class RunFiles(Callback):
    """Writes a row of metrics.csv after every epoch, best.ckpt if validation accuracy rose, and last.ckpt.

    A network that meets the target, if there is one, is better than any that does not. The rows are part of the
    checkpoints, so that metrics.csv is always the history of the weights beside it.

    Args:
        run: the run's folder.
        total_steps: the optimizer step at which the run ends.
        keep_best: whether to write best.ckpt at all; stages of a search hand on what they end with.

    Attributes:
        rows: the rows of metrics.csv, one an epoch, by column.
        fits: whether the network of best.ckpt meets the target.
        best: its validation accuracy, -1 before there is one.
    """

    state_key = "RunFiles"  # its name in checkpoints, which stays whatever the class is called

    def __init__(self, run: RunFolder, total_steps: int, keep_best: bool = True) -> None:
        self.run, self.total_steps, self.keep_best = run, total_steps, keep_best
        self.rows: list[dict[str, Any]] = []
        self.fits, self.best = False, -1.0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the epochs before."""
        return {"rows": self.rows, "best": self.best, "fits": self.fits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rows, self.best = list(state_dict["rows"]), state_dict["best"]
        self.fits = state_dict["fits"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: object) -> None:
        """End the run at its last step, which may be inside an epoch, with the gates that the target asks for."""
        if trainer.global_step >= self.total_steps and not trainer.should_stop:
            trainer.should_stop = True  # validates first, unlike Lightning's own max_steps
            pl_module.finish()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add the row of the epoch, and save."""
        module: Classifier = pl_module
        train, val = module.train_scores.compute(), module.val_scores.compute()
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row |= {f"train_{key}": train[key] for key in ("loss", "cross_entropy", "l0", "accuracy")}
        row |= {"val_loss": val["loss"], "val_accuracy": val["accuracy"]}
        if module.sparse is not None:
            row |= densities(module.sparse)
            row["temperature"] = temperature(module.sparse)
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
        """Write last.ckpt or best.ckpt. Raises `DivergedError` if the weights are no longer finite."""
        module.check_finite()
        trainer.save_checkpoint(self.run.best if best else self.run.last)

    def write_metrics(self) -> None:
        """Write metrics.csv from the rows."""
        write_csv(self.run.metrics, COLUMNS, self.rows)


def temperature(sparse: Sparsified | None) -> float | None:
    """The temperature of the gates if it moves, so that it is a buffer of theirs, else None."""
    buffers = {} if sparse is None else dict(sparse.gate.named_buffers())
    return float(buffers["temperature"]) if "temperature" in buffers else None
