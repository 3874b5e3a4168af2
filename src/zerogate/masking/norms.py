"""Norms over the channels that are kept.

A norm that runs over all channels of its input would go on counting closed ones. While gates are attached, its input x is
therefore replaced, before it runs, by one whose statistics over all N channels are those of x over the open ones: with
weights w in [0, 1], n = Σw and c = √(N/n),

    RMSNorm:   x' = c·w·x                        mean(x'²) = Σ w x² / n        for w in {0, 1}
    LayerNorm: x' = c·(w·x + (1−w)·μ), μ = Σwx/n mean(x') = c·μ, var(x') = Σ w (x−μ)² / n

and its result is divided by c again, in its weight or, where that is no plain factor, in the result itself. Compaction
then only has to slice the norm. Which of these rules is exact for which norm is found in `groups.norms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zerogate.modules.internals import parameters_of
from zerogate.structure import Norm, Structure

_SMALLEST_SUM = 1e-6
"""Stands in for a sum of weights below it, so that nothing is divided by zero when every gate of a norm is closed. A single
gate that is open by more than this is counted as it is."""


@dataclass
class KeepStatistics:
    """Pre-hook of a norm: gives its input the statistics of the open channels."""

    norm: Norm
    weights: Callable[[], Tensor]
    """Gives w, [channels] or [examples, channels]; asked at every forward."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        w = self.weights().to(x.dtype)
        scale = (w.shape[-1] / w.sum(-1, keepdim=True).clamp(min=_SMALLEST_SUM)).sqrt()
        shape = [1] * x.ndim
        shape[self.norm.dim] = w.shape[-1]
        if w.ndim > 1:
            shape[0] = len(w)
        spread, factor = w.view(shape), scale.view([-1 if w.ndim > 1 and i == 0 else 1 for i in range(x.ndim)])
        x = self._filled(x, spread, factor)
        weight = parameters_of(module).get("weight")
        if weight is not None and w.ndim == 1 and not self.norm.outside:
            module.__dict__["weight"] = weight / scale
        return (x, *args[1:])

    def _filled(self, x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        """x', with w and c broadcast to x."""
        if not self.norm.centred:
            return x * (w * scale)
        over = self.norm.over
        expanded = w.expand_as(x)
        mean = (x * w).sum(over, keepdim=True) / expanded.sum(over, keepdim=True).clamp(min=_SMALLEST_SUM)
        return torch.lerp(mean, x, expanded) * scale


@dataclass
class RestoreScale:
    """Hook of a norm: divides by c. Takes the shadow off the weight that was divided already, or else divides the result."""

    norm: Norm
    weights: Callable[[], Tensor]
    """Gives w, [channels] or [examples, channels]; asked at every forward."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None) -> Tensor | None:
        if module.__dict__.pop("weight", None) is not None or output is None:  # None: the forward broke off
            return None
        w = self.weights().to(output.dtype)
        scale = (w.sum(-1).clamp(min=_SMALLEST_SUM) / w.shape[-1]).sqrt()
        bias = parameters_of(module).get("bias")
        scale = scale.view([-1, *[1] * (output.ndim - 1)]) if w.ndim > 1 else scale
        if bias is None:
            return output * scale
        shape = [1] * output.ndim
        shape[self.norm.dim] = len(bias)
        shift = bias.view(shape)
        return (output - shift) * scale + shift


@dataclass
class FixedWeights:
    """Weights that never change."""

    value: Tensor
    """w, [channels]."""

    def __call__(self) -> Tensor:
        return self.value


def attach(module: nn.Module, norm: Norm, weights: Callable[[], Tensor]) -> list[RemovableHandle]:
    """Puts the two hooks on a norm and returns them, the one that runs before it first.

    ``weights`` gives w, [channels] or [examples, channels], and is asked at every forward.
    """
    return [
        module.register_forward_pre_hook(KeepStatistics(norm, weights)),
        module.register_forward_hook(RestoreScale(norm, weights), prepend=True, always_call=True),
    ]


def attach_kept(model: nn.Module, structure: Structure, kept: Tensor) -> None:
    """Puts hooks on all norms of a plain copy, for one choice of units ``kept``, bool [units]."""
    device = next(model.parameters()).device
    for norm in structure.norms:
        attach(model.get_submodule(norm.module), norm, FixedWeights(kept_channels(norm, kept.cpu()).to(device)))


def kept_channels(norm: Norm, kept: Tensor) -> Tensor:
    """Which channels of a norm stay, bool [channels], when these units do, bool [units]."""
    return (norm.labels < 0) | kept[norm.labels]
