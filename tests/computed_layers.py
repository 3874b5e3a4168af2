"""Layers that compute their weight as they run, of every kind that people write, and a network of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


class Computed(nn.Conv2d):
    """A convolution whose weight is a function of its parameter."""

    def __init__(self, inputs: int, outputs: int, *, function: Callable[[Any], Tensor], padding: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=padding)
        self.function = function
        self.register_buffer("mask", (torch.rand_like(self.weight) < 0.7).float())
        self.register_buffer("shown", torch.rand_like(self.weight) < 0.7)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)
        self.scores = nn.Parameter(torch.randn_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.function(self), self.bias, padding=self.padding)


class QuantisedByChannel(nn.Conv2d):
    """A scale and a zero point for each filter."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("scale", torch.rand(outputs) * 0.02 + 0.01)
        self.register_buffer("zero_point", torch.zeros(outputs, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        quantise = torch.fake_quantize_per_channel_affine
        weight = quantise(self.weight, self.scale, self.zero_point, 0, -128, 127)
        return F.conv2d(x, weight, self.bias, padding=1)


class MaskedInPlace(nn.Conv2d):
    """As PixelCNN masks its kernels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, 1, 2:], self.mask[:, :, 2:] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Scaled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 0.3


class Standardised(nn.Conv2d):
    """Weight standardisation, as EfficientNets' and BiT's authors have it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.view(1, self.out_channels, -1), None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


def _kept(scores: Tensor, share: float = 0.5) -> Tensor:
    flat = scores.abs().flatten()
    best = flat.argsort()[int(share * len(flat)) :]
    return torch.zeros_like(flat).scatter(0, best, 1.0).view_as(scores)


FUNCTIONS: dict[str, Callable[[Any], Tensor]] = {
    "scaled": lambda m: m.weight * 0.5,
    "with a gain": lambda m: m.weight * m.gain,
    "masked": lambda m: m.weight * m.mask,
    "masked by booleans": lambda m: m.weight * m.shown,
    "filled": lambda m: m.weight.masked_fill(~m.shown, 0.0),
    "soft masked": lambda m: m.weight * torch.sigmoid(3 * m.scores),
    "chosen": lambda m: torch.where(m.scores > 0, m.weight, torch.zeros_like(m.weight)),
    "rounded": lambda m: m.weight + (torch.round(m.weight * 16) / 16 - m.weight).detach(),
    "fake quantised": lambda m: torch.fake_quantize_per_tensor_affine(m.weight, 0.05, 0, -128, 127),
    "absolute": lambda m: m.weight.abs(),
}
"""Entry by entry, and zeros stay zeros."""

MIXED: dict[str, Callable[[Any], Tensor]] = {
    "standardised": lambda m: (
        (m.weight - m.weight.mean((1, 2, 3), keepdim=True)) / m.weight.std((1, 2, 3), keepdim=True)
    ),
    "normalised": lambda m: m.gain * m.weight / torch.linalg.vector_norm(m.weight, dim=(1, 2, 3), keepdim=True),
    "scaled by the largest": lambda m: torch.round(m.weight / m.weight.abs().max() * 127) * m.weight.abs().max() / 127,
    "positive": lambda m: F.softplus(m.weight) * 0.1,
    "the best scores": lambda m: m.weight * _kept(m.scores.detach()),
    "shifted": lambda m: m.weight + m.gain,
}
"""Anything else that is computed from parameters."""


def _computed(function: Callable[[Any], Tensor]) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: Computed(inputs, outputs, function=function)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _transposed(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, padding=1)


def _old(function: Callable[..., Any], make: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
    def made(inputs: int, outputs: int) -> nn.Module:
        module: nn.Module = function(make(inputs, outputs))
        return module

    return made


def _pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)


def _parametrised(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


SLICED: dict[str, Callable[[int, int], nn.Module]] = {
    **{name: _computed(function) for name, function in FUNCTIONS.items()},
    "masked in place": MaskedInPlace,
    "pruned": _old(_pruned, _conv),
    "parametrised": _old(_parametrised, _conv),
}
"""Layers whose own tensors are cut."""
NORMED: dict[str, Callable[[int, int], nn.Module]] = {
    "weight norm": _old(parametrizations.weight_norm, _conv),
    "weight norm of inputs": _old(lambda m: parametrizations.weight_norm(m, dim=1), _conv),
    "weight norm of all": _old(lambda m: parametrizations.weight_norm(m, dim=None), _conv),
    "weight norm, transposed": _old(parametrizations.weight_norm, _transposed),
    "weight norm by a hook": _old(nn.utils.weight_norm, _conv),
    "weight norm by a hook, transposed": _old(nn.utils.weight_norm, _transposed),
}
"""Layers whose g and v are stated anew."""
PLAIN: dict[str, Callable[[int, int], nn.Module]] = {
    **{name: _computed(function) for name, function in MIXED.items()},
    "spectral norm": _old(parametrizations.spectral_norm, _conv),
    "spectral norm by a hook": _old(nn.utils.spectral_norm, _conv),
    "standardised by a batch norm": lambda inputs, outputs: Standardised(inputs, outputs, 3, padding=1),
}
"""Layers in whose place plain ones stand."""
LAYERS = SLICED | NORMED | PLAIN


class Network(nn.Module):
    """Stem, residual sum, head, of layers that ``make`` makes."""

    def __init__(self, make: Callable[[int, int], nn.Module], width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = make(2, width), nn.BatchNorm2d(width)
        self.inner, self.outer = make(width, width + 2), make(width + 2, width)
        self.last = make(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.last(x).mean((2, 3))
