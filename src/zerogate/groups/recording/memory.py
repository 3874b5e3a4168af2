"""Channels that are written into memory: a buffer that a factory made, filled piece by piece through views of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.groups.label_tensors import collapse, varying_dims
from zerogate.groups.labels import Labels
from zerogate.groups.limits import FOLLOWED_MEMORY_ENTRIES
from zerogate.modules.internals import storage_key


@dataclass
class _Buffer:
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: torch.UntypedStorage
    """Held, so that no other memory takes its place."""
    labels: Tensor | None = None
    """Of what has been written, of the buffer's shape."""


class Memory:
    """Labels by memory rather than by tensor, for memory that a factory made."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._buffers: dict[int, _Buffer] = {}
        self._any_written = False

    def add(self, x: Tensor) -> None:
        """Follows what is written into a contiguous tensor that a factory made."""
        known = self._buffers.get(storage_key(x))
        labels = None if known is None else known.labels
        self._buffers[storage_key(x)] = _Buffer(tuple(x.shape), x.stride(), x.untyped_storage(), labels)

    def add_all(self, tensors: list[Tensor]) -> None:
        """Follows what is written into these, as far as they are contiguous."""
        for x in tensors:
            if x.is_contiguous():
                self.add(x)

    def is_written(self, x: Tensor) -> bool:
        """Whether channels have been written into a tensor's memory."""
        return self._any_written and self._written(x) is not None

    def labels_of(self, x: Tensor) -> Tensor | None:
        """Labels of what has been written into a tensor's memory; None where no channels have."""
        written = self._written(x) if self._any_written else None
        if written is None:
            return None
        return collapse(written.flatten().as_strided(x.shape, x.stride(), x.storage_offset()))

    def write(self, x: Tensor, labels: Tensor) -> bool:
        """Notes that channels are written into x; False where it cannot be followed.

        Channels keep the offsets at which they were written; along every other dimension the whole buffer carries them,
        as in a concatenation.
        """
        vary = varying_dims(labels)
        buffer = self._buffers.get(storage_key(x))
        if buffer is None or not vary or math.prod(buffer.shape) > FOLLOWED_MEMORY_ENTRIES:
            return False
        whole = torch.zeros(buffer.shape, dtype=torch.int64) if buffer.labels is None else buffer.labels
        part, order = whole, []
        for d in vary:
            own = [
                b
                for b, (n, stride) in enumerate(zip(buffer.shape, buffer.strides, strict=True))
                if n > 1 and stride == x.stride(d)
            ]
            start = x.storage_offset() // x.stride(d) % buffer.shape[own[0]] if own else 0
            if len(own) != 1 or start + x.shape[d] > buffer.shape[own[0]]:
                return False
            part = part.narrow(own[0], start, x.shape[d])
            order.append(own[0])
        put = labels[tuple(slice(None) if d in vary else 0 for d in range(labels.ndim))]
        put = put.permute(sorted(range(len(order)), key=order.__getitem__))
        put = put.reshape([part.shape[d] if d in order else 1 for d in range(len(buffer.shape))]).expand(part.shape)
        self._labels.unite(part, put)
        part.copy_(torch.where(put != 0, put, part))
        buffer.labels, self._any_written = whole, True
        return True

    def _written(self, x: Tensor) -> Tensor | None:
        buffer = self._buffers.get(storage_key(x))
        return None if buffer is None else buffer.labels
