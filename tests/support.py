"""What several test files share: random closings, independent counts, small networks."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg


def close_randomly(
    sparse: zg.Sparsified, generator: torch.Generator, style: str | None = None, fractional: bool = False
) -> None:
    """Sets every gate hard open or closed: a random share per group, groups with one open unit, groups all closed.

    ``fractional``: some of the open ones are set between 0 and 1."""
    with torch.no_grad():
        for group in sparse.groups:
            kind = style or random.Random(int(torch.randint(1 << 30, (), generator=generator))).choice(
                ["share", "share", "one", "none", "all"]
            )
            n = group.units
            if kind == "share":
                is_open = torch.rand(n, generator=generator) < torch.rand((), generator=generator)
            elif kind == "one":
                is_open = torch.arange(n) == torch.randint(n, (), generator=generator)
            else:
                is_open = torch.full((n,), kind == "all")
            sparse.logits[group.slice] = torch.where(is_open, 8.0, -8.0).to(sparse.logits)
        if fractional:
            some = torch.rand(sparse.logits.shape, generator=generator) < 0.3
            sparse.logits[some & sparse.is_open()] = 0.7


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Random biases, scales and BatchNorm statistics: whatever a trained network could hold."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.ndim < 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5 + ("weight" in name))


def count_macs(model: nn.Module, x: Tensor) -> int:
    """MACs of convolutions and linear layers for one example, counted by hooks from the layers' own sizes."""
    total = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.numel() * module.in_features
        elif isinstance(module, nn.modules.conv._ConvNd):
            kernel = module.weight[0, 0].numel()
            if module.transposed:
                total += args[0].numel() * module.out_channels // module.groups * kernel
            else:
                total += out.numel() * module.in_channels // module.groups * kernel

    handles = [m.register_forward_hook(hook) for m in model.modules()]
    training = model.training
    with torch.no_grad():
        model.eval()(x)
    model.train(training)
    for handle in handles:
        handle.remove()
    return total // len(x)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-300)).item()


class Lambda(nn.Module):
    """A module around a function, for tests of single ops."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.function = function

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.function(self, *args, **kwargs)


class Residual(nn.Module):
    """Stem, residual sum, concatenation, linear head."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Sequential(
            nn.Conv2d(width, width + 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width + 2, width, 3, padding=1)
        )
        self.left = nn.Conv2d(width, 4, 1)
        self.right = nn.Conv2d(width, 5, 3, padding=1)
        self.head = nn.Linear(9, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.body(x)
        x = torch.cat([self.left(x), F.max_pool2d(self.right(x), 3, 1, 1)], 1)
        return self.head(F.gelu(x).mean((2, 3)))
