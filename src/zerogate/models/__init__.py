"""Networks to start from: ordinary modules without a gate inside, one plain factory each."""

from zerogate.models.convnet import ConvNet, convnet
from zerogate.models.googlenet import GoogLeNet, Inception, googlenet
from zerogate.models.lenet import LeNet5, LeNet300, lenet5, lenet300
from zerogate.models.resnet import ResidualBlock, ResNet, WideBlock, WideResNet, resnet20, wrn28_10
from zerogate.models.vgg import VGG16, vgg16

__all__ = [
    "VGG16",
    "ConvNet",
    "GoogLeNet",
    "Inception",
    "LeNet5",
    "LeNet300",
    "ResNet",
    "ResidualBlock",
    "WideBlock",
    "WideResNet",
    "convnet",
    "googlenet",
    "lenet5",
    "lenet300",
    "resnet20",
    "vgg16",
    "wrn28_10",
]
