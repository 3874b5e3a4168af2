"""The two LeNets of the pruning literature: the multilayer perceptron 300-100 and the convolutional LeNet-5."""

import torch.nn.functional as F
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.models.layers import check_count


class LeNet300(nn.Module):
    """Fully connected ``in_features``-300-100-``num_classes`` network with ReLU; 266,610 parameters on MNIST.

    Args:
        num_classes: number of classes.
        in_features: values per example, channels · height · width; 784 for MNIST.

    Shapes: images ``[batch, channels, height, width]`` or vectors ``[batch, in_features]`` → ``[batch, num_classes]``.

    Raises:
        ZerogateError: an argument is not a positive whole number.
    """

    def __init__(self, num_classes: int = 10, in_features: int = 784) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_features", in_features)
        self.fc1 = nn.Linear(in_features, 300)
        self.fc2 = nn.Linear(300, 100)
        self.classifier = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        return self.classifier(F.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's widths, 20-50-500-``num_classes``; 431,080 parameters on MNIST.

    Two unpadded 5×5 convolutions, each with ReLU and 2×2 max-pooling, then two linear layers: the network that the
    L0 paper prunes.

    Args:
        num_classes: number of classes.
        in_channels: channels of the image, 1 for greyscale and 3 for RGB.
        image_size: height and width of the square image in pixels, at least 16; it sets the first linear layer.

    Shapes: images ``[batch, in_channels, image_size, image_size]`` → logits ``[batch, num_classes]``.

    Raises:
        ZerogateError: an argument is not a positive whole number, or the image is too small for both convolutions.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        check_count("image_size", image_size)
        pooled = ((image_size - 4) // 2 - 4) // 2  # pixels along one side after both convolutions and poolings
        if pooled < 1:
            raise ZerogateError(f"image_size is {image_size}; LeNet-5 needs images of at least 16×16 pixels")
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * pooled * pooled, 500)
        self.classifier = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(x)))
        x = self.pool2(F.relu(self.conv2(x)))
        return self.classifier(F.relu(self.fc1(x.flatten(1))))


def lenet300(num_classes: int = 10, in_features: int = 784) -> LeNet300:
    """The 300-100 perceptron, see :class:`LeNet300`."""
    return LeNet300(num_classes, in_features)


def lenet5(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> LeNet5:
    """Caffe's LeNet-5, see :class:`LeNet5`."""
    return LeNet5(num_classes, in_channels, image_size)
