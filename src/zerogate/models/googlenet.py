"""The CIFAR-sized GoogLeNet: eight Inception blocks on 3×3 stem features (Szegedy et al., CVPR 2015, scaled down)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from zerogate.models.layers import ConvBNReLU, check_count, init_kaiming


class InceptionWidths(NamedTuple):
    """Channel counts of one Inception block."""

    in_channels: int
    reduce3x3: int
    reduce5x5: int
    out1x1: int
    out3x3: int
    out5x5: int
    out_pool: int

    @property
    def out_channels(self) -> int:
        """Channels of the concatenated output."""
        return self.out1x1 + self.out3x3 + self.out5x5 + self.out_pool


STAGE1 = (InceptionWidths(64, 32, 16, 16, 32, 8, 8), InceptionWidths(64, 32, 16, 24, 48, 12, 12))
STAGE2 = (
    InceptionWidths(96, 32, 16, 24, 48, 12, 12),
    InceptionWidths(96, 32, 16, 16, 48, 16, 16),
    InceptionWidths(96, 32, 16, 16, 48, 16, 16),
    InceptionWidths(96, 32, 16, 32, 48, 24, 24),
)
STAGE3 = (InceptionWidths(128, 48, 16, 32, 64, 16, 16), InceptionWidths(128, 48, 16, 32, 64, 16, 16))


class Inception(nn.Module):
    """Four parallel branches, concatenated: 1×1; 1×1 → 3×3; 1×1 → 5×5; 3×3 max-pooling → 1×1.

    Shapes: ``[batch, in_channels, height, width]`` → ``[batch, out_channels, height, width]``.
    """

    def __init__(self, widths: InceptionWidths) -> None:
        super().__init__()
        w = widths
        self.branch1x1 = ConvBNReLU(w.in_channels, w.out1x1, 1, bias=True)
        self.reduce3x3 = ConvBNReLU(w.in_channels, w.reduce3x3, 1, bias=True)
        self.branch3x3 = ConvBNReLU(w.reduce3x3, w.out3x3, 3, bias=True)
        self.reduce5x5 = ConvBNReLU(w.in_channels, w.reduce5x5, 1, bias=True)
        self.branch5x5 = ConvBNReLU(w.reduce5x5, w.out5x5, 5, bias=True)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.branch_pool = ConvBNReLU(w.in_channels, w.out_pool, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        branches = [
            self.branch1x1(x),
            self.branch3x3(self.reduce3x3(x)),
            self.branch5x5(self.reduce5x5(x)),
            self.branch_pool(self.pool(x)),
        ]
        return torch.cat(branches, dim=1)


class GoogLeNet(nn.Module):
    """CIFAR GoogLeNet; 260,650 parameters for RGB images and ten classes.

    Every convolution has a bias and is followed by BatchNorm and ReLU. Convolution weights start Kaiming-normal.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 3 for RGB and 1 for greyscale.

    Shapes: images ``[batch, in_channels, height, width]`` of any size → logits ``[batch, num_classes]``.

    Raises:
        ZerogateError: an argument is not a positive whole number.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        self.stem = ConvBNReLU(in_channels, STAGE1[0].in_channels, 3, bias=True)
        self.stage1 = nn.Sequential(*map(Inception, STAGE1))
        self.pool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = nn.Sequential(*map(Inception, STAGE2))
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage3 = nn.Sequential(*map(Inception, STAGE3))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(STAGE3[-1].out_channels, num_classes)
        init_kaiming(self, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x))
        x = self.stage2(self.pool1(x))
        x = self.stage3(self.pool2(x))
        return self.classifier(self.global_pool(x).flatten(1))


def googlenet(num_classes: int = 10, in_channels: int = 3) -> GoogLeNet:
    """The CIFAR Inception network, see :class:`GoogLeNet`."""
    return GoogLeNet(num_classes, in_channels)
