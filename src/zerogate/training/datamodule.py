"""The data that a Lightning trainer trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor

from zerogate.data import Augment, Batches, ImageData
from zerogate.data.loading import Split


class _EpochsFrom:
    """Batches that begin wherever `position` says: (epoch, batches of it that are done)."""

    def __init__(self, batches: Batches, position: Callable[[], tuple[int, int]]) -> None:
        self.batches, self.position = batches, position

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, batch = self.position()
        self.batches.load_state_dict({"epoch": epoch, "batch": batch})
        yield from self.batches


class ImageDataModule(pl.LightningDataModule):
    """The three splits of an `ImageData` as batches on a device; only the training split is shuffled and augmented.

    Attributes:
        data: the images.
        train, validation, test: their `Batches`.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        eval_batch_size: int,
        augment: Augment | None = None,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.data = data

        def evaluated(split: Split) -> Batches:
            return Batches(
                split, eval_batch_size, mean=data.mean, std=data.std, device=device, channels_last=channels_last
            )

        self.train = Batches(
            data.train, batch_size, mean=data.mean, std=data.std, device=device, channels_last=channels_last,
            shuffle=True, drop_last=drop_last, augment=augment, seed=seed,
        )  # fmt: skip
        self.validation, self.test = evaluated(data.validation), evaluated(data.test)

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            raise RuntimeError("training batches follow the position of a trainer; give this module to Trainer.fit")
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def train_dataloader(self) -> _EpochsFrom:
        """The training batches, from the trainer's epoch and batch on."""
        return _EpochsFrom(self.train, self._position)

    def val_dataloader(self) -> _EpochsFrom:
        """The validation batches, in order."""
        return _EpochsFrom(self.validation, lambda: (0, 0))

    def examples(self, count: int = 4) -> Tensor:
        """Up to `count` validation images [count, C, H, W], normalised: example inputs of a model."""
        self.validation.load_state_dict({"epoch": 0, "batch": 0})
        images, _ = next(iter(self.validation))
        return images[:count]
