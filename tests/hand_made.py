"""Recordings and steps made by hand, for tests of what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zerogate.groups.labels import Labels
from zerogate.groups.recording.record import Recording, Step
from zerogate.structure import Axis, LayerCall


def step_of(
    func: Any,
    args: Sequence[Any],
    entering: Sequence[Tensor],
    results: Sequence[Tensor | None],
    module: str = "",
    line: int = 1,
    **kwargs: Any,
) -> Step:
    """One call of an ATen op; ``args`` without their tensors (None), labels that enter and those of the results."""
    outs = [(tuple(labels.shape), labels) for labels in results if labels is not None]
    name = func.overloadpacket.__name__
    return Step(name, module, ("model.py", line), func, tuple(args), kwargs, list(entering), outs)


def call(layer: str, consumes: int | None, produces: int | None, macs: float = 1.0) -> LayerCall:
    """One run of a layer, along these dimensions of its weight."""
    weight = f"{layer}.weight"
    axes = [None if d is None else (weight, d) for d in (consumes, produces)]
    return LayerCall(layer, layer, weight, axes[0], axes[1], macs, -1)


class Chain:
    """A recording of linear layers one after another: layer i makes sizes[i] channels, and layer i + 1 reads them.

    The first layer reads nothing that can go, and the last one's channels are frozen as an output.
    """

    def __init__(self, *sizes: int) -> None:
        self.recording = Recording()
        self.made: list[Tensor] = []
        """Labels of each layer's channels."""
        labels: Labels = self.recording.labels
        for i, n in enumerate(sizes):
            name = f"layer{i}"
            self.made.append(labels.new(n))
            self.recording.axes[f"{name}.weight", 0] = self.made[i]
            if i:
                self.recording.axes[f"{name}.weight", 1] = self.made[i - 1]
            self.recording.calls.append(call(name, 1 if i else None, 0))
        labels.freeze(self.made[-1], "an output of the network")

    def axis(self, layer: int, dim: int) -> Axis:
        return f"layer{layer}.weight", dim


def along(labels: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Labels that vary along one dimension of a tensor, and are expanded along the others."""
    view = [1] * len(shape)
    view[dim] = -1
    return labels.view(view).expand(tuple(shape))


def channels(n: int, shape: Sequence[int] = (2, -1), dim: int = 1, first: int = 1) -> Tensor:
    """Labels first, first + 1, … of n channels in a tensor of this shape, −1 along ``dim``."""
    full = [n if d == dim else size for d, size in enumerate(shape)]
    return along(torch.arange(first, first + n), full, dim)
