"""What is worked out once for each device, or kind of tensor, and used again; copies and pickles begin anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class DeviceTables(Generic[T]):
    """Values by device, or by any other key.

    Args:
        latest: keep the value of the last key alone, for those that are large or change.
    """

    def __init__(self, latest: bool = False) -> None:
        self._latest = latest
        self._made: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key; where there is none, ``make()``, outside of inference mode, so that autograd may use it."""
        if key not in self._made:
            with torch.inference_mode(False):
                made = make()
            if self._latest:
                self._made.clear()
            self._made[key] = made
        return self._made[key]

    def __reduce__(self) -> tuple[type[DeviceTables[T]], tuple[bool]]:
        return DeviceTables, (self._latest,)
