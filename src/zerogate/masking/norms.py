"""Norms over the channels that are kept.

A norm that runs over all channels of its input would go on counting closed ones. While gates are attached, its input x is
therefore replaced, before it runs, by one whose statistics over all N channels are those of x over the open ones: with
weights w in [0, 1], n = Σw and c = √(N/n),

    RMSNorm:   x' = c·w·x                        mean(x'²) = Σ w x² / n        for w in {0, 1}
    LayerNorm: x' = c·(w·x + (1−w)·μ), μ = Σwx/n mean(x') = c·μ, var(x') = Σ w (x−μ)² / n

and its result is divided by c again, in its factor or, where it has no plain one, in the result itself. What takes sums or
largest values, and does not count its channels, gets the same with c = 1: a norm by Σx², or the mean and the largest of all
channels. Compaction then only has to slice the norm. Which of these rules is exact for which norm is found in
`groups.norms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from zerogate.errors import ZerogateError
from zerogate.modules.internals import buffers_of, parameters_of
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
        counted = w.shape[-1] / w.sum(-1, keepdim=True).clamp(min=_SMALLEST_SUM)
        scale = counted.sqrt() if self.norm.scaled else torch.ones_like(counted)
        shape = [1] * x.ndim
        shape[self.norm.dim] = w.shape[-1]
        if w.ndim > 1:
            shape[0] = len(w)
        spread, factor = w.view(shape), scale.view([-1 if w.ndim > 1 and i == 0 else 1 for i in range(x.ndim)])
        x = self._filled(x, spread, factor)
        if self.norm.factor and w.ndim == 1 and self.norm.scaled:
            module.__dict__[self.norm.factor] = own_tensor(module, self.norm.factor) / scale
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
        shadow = module.__dict__.pop(self.norm.factor, None) if self.norm.factor else None
        if shadow is not None or output is None or not self.norm.scaled:  # None: the forward broke off
            return None
        if self.norm.shift is None:
            raise ZerogateError(
                f"per_example gates need to know what {self.norm.module} adds to each channel; "
                f"exclude it with exclude=[{self.norm.module!r}]"
            )
        w = self.weights().to(output.dtype)
        scale = (w.sum(-1).clamp(min=_SMALLEST_SUM) / w.shape[-1]).sqrt()
        scale = scale.view([-1, *[1] * (output.ndim - 1)]) if w.ndim > 1 else scale
        if not self.norm.shift:
            return output * scale
        shift = own_tensor(module, self.norm.shift)
        if shift.ndim == 1:
            shape = [1] * output.ndim
            shape[self.norm.dim] = len(shift)
            shift = shift.view(shape)
        return (output - shift) * scale + shift


@dataclass
class FixedWeights:
    """Weights that never change."""

    value: Tensor
    """w, [channels]."""

    def __call__(self) -> Tensor:
        return self.value


def own_tensor(module: nn.Module, name: str) -> Tensor:
    """A module's own parameter or buffer, also where something shadows it."""
    found = parameters_of(module).get(name, buffers_of(module).get(name))
    assert found is not None
    return found


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
