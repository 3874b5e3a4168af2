"""Lightning's trainer, without what it would write and say by itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytorch_lightning as pl
from omegaconf import DictConfig

from zerogate.errors import ConfigError, one_line
from zerogate.training.checkpoints import CheckpointIO

_OWN_KEYS = ("max_epochs", "max_steps", "log_every_n_steps", "progress")
"""Keys of the group `trainer` that zerogate carries out itself; all others go to Lightning."""


def make_trainer(config: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """A Lightning trainer for one device that writes and prints nothing by itself.

    Raises:
        ConfigError: Lightning does not take the keys of the group `trainer`.
    """
    options = {str(key): value for key, value in config.trainer.items() if key not in _OWN_KEYS}
    try:
        return pl.Trainer(
            max_epochs=config.trainer.max_epochs,
            devices=1,
            callbacks=list(callbacks),
            plugins=[CheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            **options,
        )
    except (TypeError, ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(f"trainer cannot be made: {one_line(error)}; correct the trainer keys") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning's hints, and warnings that mean nothing to somebody who only wrote a configuration."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "hydra")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # Hydra reports as an error what it then raises
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torchmetrics|tensorboard)\b")
            warnings.filterwarnings("ignore", category=pl.utilities.warnings.PossibleUserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
