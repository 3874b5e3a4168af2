"""The TensorBoard log of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from zerogate.training.callbacks.files import RunFiles, temperature

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog(Callback):
    """Logs losses, learning rates and temperature every few steps; accuracy, densities and gate histograms every epoch.

    Args:
        files: has the folder of the run and the rows of its epochs.
        every: optimizer steps from one log to the next.
    """

    def __init__(self, files: RunFiles, every: int) -> None:
        self.files, self.every = files, every
        self._writer: SummaryWriter | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open an events file. What an earlier one has logged after the step that is resumed from becomes void."""
        from torch.utils.tensorboard import SummaryWriter  # only now: importing it takes a second

        step = trainer.global_step
        self._writer = SummaryWriter(str(self.files.run), purge_step=step + 1 if step else None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log a step."""
        step = trainer.global_step
        if step % self.every == 0:
            scalars: dict[str, float | None] = {f"train/{key}": float(value) for key, value in pl_module.last.items()}
            scalars |= {f"learning_rate/{key}": value for key, value in pl_module.rates.items()}
            scalars["gates/temperature"] = temperature(pl_module.sparse)
            self._log(scalars, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Log an epoch."""
        row, sparse = self.files.rows[-1], pl_module.sparse
        scalars = {f"accuracy/{split}": row[f"{split}_accuracy"] for split in ("train", "val")}
        scalars["val/loss"] = row["val_loss"]
        histograms: dict[str, Tensor] = {}
        if sparse is not None:
            scalars |= {f"density/{key.replace('density_', '')}": row[key] for key in row if "density" in key}
            probability = sparse.open_probability()
            histograms = {f"open_probability/{group.name}": probability[group.slice] for group in sparse.groups}
        self._log(scalars, row["step"], histograms)

    def _log(
        self, scalars: Mapping[str, float | None], step: int, histograms: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write scalars, without those that are None; with histograms, also what is still in the writer's buffer."""
        if self._writer is None:
            raise RuntimeError("training has not started: there is no events file yet")
        for name, tensor in (histograms or {}).items():
            self._writer.add_histogram(name, tensor, step)
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        if histograms is not None:
            self._writer.flush()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the file, after an exception too."""
        if self._writer is not None:
            self._writer.close()
