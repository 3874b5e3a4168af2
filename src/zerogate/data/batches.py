"""Epochs of batches whose every random choice follows from (seed, epoch, batch), so that a run can stop anywhere."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from zerogate.checks import is_whole
from zerogate.data.augment import normalize
from zerogate.data.loading import Split
from zerogate.data.seeds import seed_of
from zerogate.errors import DataError


class Batches:
    """Iterates over one epoch at a time: float32 images [B, C, H, W], normalised and augmented, and int64 labels [B].

    Order and augmentation depend on `seed`, the epoch and the batch's number only, on every device. After an iteration
    left early the next one starts the same epoch again, unless `load_state_dict` says where to go on.

    Args:
        split: images uint8 [N, C, H, W] and labels, moved to `device` once and kept there.
        batch_size: images per batch; the last batch is smaller unless `drop_last`.
        mean, std: per channel, in [0, 1] scale.
        augment: called with a normalised batch and a generator, such as an `Augment`.
        channels_last: hand out images in that memory format (single pixels and lines excepted, where it means nothing).

    Raises:
        DataError: a batch size below 1, an empty split, or one that yields no batch at all.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
        channels_last: bool = True,
    ) -> None:
        if not is_whole(batch_size):
            raise DataError(f"batch_size is {batch_size!r}; give a whole number of at least 1")
        if len(split) == 0:
            raise DataError("the split holds no images; there is nothing to iterate over")
        if drop_last and len(split) < batch_size:
            raise DataError(f"batch_size={batch_size} with drop_last leaves no batch of {len(split)} images; lower it")
        if not len(mean) == len(std) == split.images.shape[1]:
            raise DataError(
                f"mean has {len(mean)} and std {len(std)} values, the images have {split.images.shape[1]} channels; "
                "give one of each per channel"
            )
        self.batch_size = batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.device = torch.device(device)
        self.shuffle, self.drop_last, self.augment, self.seed = shuffle, drop_last, augment, seed
        channels, height = split.images.shape[1:3]
        apply = channels_last and (channels > 1 or height > 1)
        self._format = torch.channels_last if apply else torch.contiguous_format
        self._images = split.images.contiguous().to(self.device)
        self._labels = split.labels.to(self.device)
        self._epoch = 0
        self._batch = 0
        self._start: int | None = None  # where the next iteration begins, if told to go on from a state

    def __len__(self) -> int:
        """Batches per epoch."""
        count = len(self._labels)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    @property
    def epoch(self) -> int:
        """The epoch that is being iterated, or that the next iteration will be."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`, or stay at the place within it that a state just loaded named."""
        if epoch != self._epoch or self._start is None:
            self._epoch, self._batch, self._start = epoch, 0, None

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next iteration go on exactly behind the batches that `state` counts.

        Raises:
            DataError: the state counts more batches than an epoch has.
        """
        epoch, batch = int(state["epoch"]), int(state["batch"])
        if epoch < 0 or not 0 <= batch <= len(self):
            raise DataError(
                f"state epoch={epoch} batch={batch} does not fit epochs of {len(self)} batches; "
                "use the data, batch size and limit that it was saved with"
            )
        self._epoch, self._batch, self._start = epoch, batch, batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the current epoch, or what a loaded state left of it; its last batch makes the next one current."""
        if self._start is None and self._batch == len(self):
            self._epoch += 1  # who takes len(self) batches and never asks for one more has finished the epoch too
        start, self._start = self._start or 0, None
        epoch, self._batch = self._epoch, start
        order = self._order(epoch)
        for batch in range(start, len(self)):
            self._batch = batch + 1
            yield self._make(order, epoch, batch)
        self._epoch, self._batch = epoch + 1, 0

    def _order(self, epoch: int) -> Tensor | None:
        if not self.shuffle:
            return None
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, bits=63))
        return torch.randperm(len(self._labels), generator=generator).to(self.device)

    def _make(self, order: Tensor | None, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        place = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        chosen = place if order is None else order[place]
        x = normalize(self._images[chosen], self.mean, self.std)
        if self.augment is not None:
            x = self.augment(x, torch.Generator().manual_seed(seed_of(self.seed, epoch, batch, bits=63)))
        # Converted last: augmenting three interleaved channels takes twice as long as augmenting planes.
        return x.contiguous(memory_format=self._format), self._labels[chosen]
