"""VGG-16 with BatchNorm, cut down to one linear layer for small images."""

from torch import Tensor, nn

from zerogate.models.layers import ConvBNReLU, check_count, init_kaiming

# Widths of the 3×3 convolutions, one tuple a stage; a 2×2 max-pooling ends each stage.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """VGG-16 (Simonyan & Zisserman, ICLR 2015) with BatchNorm; 14,728,266 parameters for RGB images and ten classes.

    Every convolution has a bias and is followed by BatchNorm and ReLU. Global average pooling takes the place of the
    hidden linear layers. Convolution weights start Kaiming-normal (fan-out).

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
        layers: list[nn.Module] = []
        width = in_channels
        for stage in STAGES:
            for out_channels in stage:
                layers.append(ConvBNReLU(width, out_channels, 3, bias=True))
                width = out_channels
            # Rounding sizes up changes nothing for multiples of 32, and lets 28×28 or 8×8 images reach the last stage.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        init_kaiming(self, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.global_pool(self.features(x)).flatten(1))


def vgg16(num_classes: int = 10, in_channels: int = 3) -> VGG16:
    """VGG-16 with BatchNorm for small images, see :class:`VGG16`."""
    return VGG16(num_classes, in_channels)
