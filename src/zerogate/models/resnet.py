"""Residual networks for small images: ResNet-20 as Continuous Sparsification trains it, and Wide ResNet."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.models.layers import check_count, check_dropout, init_kaiming


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _blocks_per_stage(depth: int, remainder: int) -> int:
    """Blocks in each of three stages of a network with ``depth = 6·n + remainder`` layers."""
    check_count("depth", depth, at_least=6 + remainder)
    blocks, rest = divmod(depth - remainder, 6)
    if rest:
        nearest = 6 * blocks + remainder
        raise ZerogateError(f"depth is {depth}; pass 6·n + {remainder}, such as {nearest} or {nearest + 6}")
    return blocks


class ResidualBlock(nn.Module):
    """conv–BN–ReLU–conv–BN, plus the shortcut, then ReLU.

    The shortcut is the identity or, where stride or width change, a bare strided 1×1 convolution.
    Shapes: ``[batch, in_channels, height, width]`` → ``[batch, out_channels, ⌈height/stride⌉, ⌈width/stride⌉]``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv_a = _conv3x3(in_channels, out_channels, stride)
        self.bn_a = nn.BatchNorm2d(out_channels)
        self.conv_b = _conv3x3(out_channels, out_channels)
        self.bn_b = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn_a(self.conv_a(x)))
        out = self.bn_b(self.conv_b(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet with 16-32-64 channels, the network of the Continuous Sparsification experiments.

    Convolutions have no bias; convolution and linear weights start Xavier-normal, the classifier's bias at zero.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 3 for RGB and 1 for greyscale.
        depth: ``6·n + 2`` for ``n`` blocks in each of the three stages; 20, 32, 44, 56, 110.

    Attributes:
        dense_by_default: ``fnmatch`` patterns of module names that weight-level gates leave dense, as the published
            experiments do: the 1×1 shortcuts and the classifier. Pass them as ``exclude`` to ``zerogate.sparsify``.

    Shapes: images ``[batch, in_channels, height, width]`` of any size → logits ``[batch, num_classes]``.

    Raises:
        ZerogateError: a count is not a positive whole number, or ``depth`` is not ``6·n + 2``.
    """

    dense_by_default: ClassVar[tuple[str, ...]] = ("*.shortcut", "classifier")

    def __init__(self, num_classes: int = 10, in_channels: int = 3, depth: int = 20) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        blocks = _blocks_per_stage(depth, remainder=2)
        self.conv0 = _conv3x3(in_channels, 16)
        self.bn0 = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, blocks, stride=1)
        self.stage2 = self._stage(16, 32, blocks, stride=2)
        self.stage3 = self._stage(32, 64, blocks, stride=2)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = ResidualBlock(in_channels, out_channels, stride)
        return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(self.global_pool(x).flatten(1))


class WideBlock(nn.Module):
    """Pre-activation block: BN–ReLU–conv, BN–ReLU–dropout–conv, plus the shortcut.

    The shortcut is the untouched input or, where stride or width change, a 1×1 convolution of the activated input.
    Shapes: ``[batch, in_channels, height, width]`` → ``[batch, out_channels, ⌈height/stride⌉, ⌈width/stride⌉]``.
    """

    shortcut: nn.Conv2d | None

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn_a = nn.BatchNorm2d(in_channels)
        self.conv_a = _conv3x3(in_channels, out_channels, stride)
        self.bn_b = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_b = _conv3x3(out_channels, out_channels)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn_a(x))
        out = F.relu(self.bn_b(self.conv_a(activated)))
        out = self.conv_b(self.dropout(out))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis, BMVC 2016), 16·widen, 32·widen and 64·widen channels.

    Convolution weights start Kaiming-normal (fan-out), the classifier's bias at zero.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 3 for RGB and 1 for greyscale.
        depth: ``6·n + 4`` for ``n`` blocks in each of the three stages; 10, 16, 22, 28, 40.
        widen: factor on the channels.
        dropout: probability of dropping an activation between a block's convolutions, at least 0 and below 1.

    Shapes: images ``[batch, in_channels, height, width]`` of any size → logits ``[batch, num_classes]``.

    Raises:
        ZerogateError: a count is not a positive whole number, ``depth`` is not ``6·n + 4``, or ``dropout`` is out of
            range.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, depth: int = 28, widen: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        check_count("widen", widen)
        check_dropout(dropout)
        blocks = _blocks_per_stage(depth, remainder=4)
        self.conv0 = _conv3x3(in_channels, 16)
        self.stage1 = self._stage(16, 16 * widen, blocks, 1, dropout)
        self.stage2 = self._stage(16 * widen, 32 * widen, blocks, 2, dropout)
        self.stage3 = self._stage(32 * widen, 64 * widen, blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(64 * widen)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64 * widen, num_classes)
        init_kaiming(self, mode="fan_out")
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
        first = WideBlock(in_channels, out_channels, stride, dropout)
        rest = (WideBlock(out_channels, out_channels, dropout=dropout) for _ in range(blocks - 1))
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(self.conv0(x))))
        x = F.relu(self.bn(x))
        return self.classifier(self.global_pool(x).flatten(1))


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """The 20-layer CIFAR ResNet, see :class:`ResNet`."""
    return ResNet(num_classes, in_channels, depth=20)


def wrn28_10(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """Wide ResNet with 28 layers, ten times as wide, see :class:`WideResNet`."""
    return WideResNet(num_classes, in_channels, depth=28, widen=10, dropout=dropout)
