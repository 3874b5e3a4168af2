"""A small network with everything that makes channels hard to remove: BatchNorm, a residual sum, a concatenation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerogate.models.layers import ConvBNReLU, check_count, init_kaiming


class ConvNet(nn.Module):
    """Stem, one residual block, two parallel branches, one more convolution; made for the 8×8 digits of scikit-learn.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 1 for greyscale and 3 for RGB.
        width: channels of every convolution; the default gives 48,106 parameters for greyscale and ten classes.

    Shapes: images ``[batch, in_channels, height, width]`` of at least 2×2 pixels → logits ``[batch, num_classes]``.

    Raises:
        ZerogateError: an argument is not a positive whole number.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        check_count("width", width)
        self.stem = ConvBNReLU(in_channels, width, 3)
        self.block_a = ConvBNReLU(width, width, 3)
        # The block's ReLU comes after the sum, so its second convolution and BatchNorm stand alone.
        self.conv_b = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(width)
        self.branch1x1 = ConvBNReLU(width, width, 1)
        self.branch3x3 = ConvBNReLU(width, width, 3)
        self.pool = nn.MaxPool2d(2)
        self.head = ConvBNReLU(2 * width, width, 3)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        init_kaiming(self, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn_b(self.conv_b(self.block_a(x))))
        x = torch.cat([self.branch1x1(x), self.branch3x3(x)], dim=1)
        x = self.head(self.pool(x))
        return self.classifier(self.global_pool(x).flatten(1))


def convnet(num_classes: int = 10, in_channels: int = 1, width: int = 32) -> ConvNet:
    """The small network of the demo, see :class:`ConvNet`."""
    return ConvNet(num_classes, in_channels, width)
