"""What tests of the configuration share: the options of a group, and images of the shapes of the named data sets."""

from __future__ import annotations

from pathlib import Path

import torch

import zerogate.training.configs
from zerogate import data

CONFIGS = Path(zerogate.training.configs.__file__).parent
SHAPES = {"digits": (1, 8, 10), "mnist": (1, 28, 10), "cifar10": (3, 32, 10), "cifar100": (3, 32, 100)}


def options(group: str) -> list[str]:
    """The options of a group of the configuration."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def images(name: str) -> data.ImageData:
    """Four black images of the shape and with the classes of a named data set."""
    channels, size, classes = SHAPES[name]
    split = data.Split(torch.zeros(4, channels, size, size, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    return data.ImageData(name, split, split, split, classes, (0.5,) * channels, (0.25,) * channels)
