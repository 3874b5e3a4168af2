"""What the network families share: the convolution block, its initialisation, the check of a factory's arguments."""

import numbers
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zerogate.checks import check, is_number


class ConvBNReLU(nn.Module):
    """Convolution, batch normalisation, ReLU; the padding keeps the spatial size (``kernel_size`` is odd).

    Shapes: ``[batch, in_channels, height, width]`` → ``[batch, out_channels, height, width]``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def init_kaiming(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw every convolution of ``model`` from the Kaiming normal distribution for ReLU and zero its bias."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_count(name: str, value: object, at_least: int = 1) -> None:
    """Raise :class:`ZerogateError` unless ``value`` is a whole number of at least ``at_least``."""
    fits = isinstance(value, numbers.Integral) and is_number(value) and value >= at_least  # NumPy's integers will do
    check(fits, name, f"a whole number of at least {at_least}", value)


def check_dropout(value: object) -> None:
    """Raise :class:`ZerogateError` unless ``value`` is a number of at least 0 and below 1."""
    fits = isinstance(value, int | float) and 0.0 <= value < 1.0
    check(fits, "dropout", "a probability of at least 0 and below 1", value)
