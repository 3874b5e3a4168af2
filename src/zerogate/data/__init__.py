"""Image data for training: decoded once to uint8, kept as tensors, augmented a whole batch at a time.

    data = load("cifar10", path="some/folder")
    for x, y in Batches(data.train, 128, data.mean, data.std, shuffle=True, augment=Augment(crop=4)):
        ...

Imports torch only; `load` imports what a data set needs (the extra `zerogate[train]`) when it is called.
"""

from zerogate.data.augment import Augment, normalize, random_crop, random_flip, random_resized_crop
from zerogate.data.batches import Batches
from zerogate.data.loading import DATASETS, ImageData, Split, load

__all__ = [
    "DATASETS",
    "Augment",
    "Batches",
    "ImageData",
    "Split",
    "load",
    "normalize",
    "random_crop",
    "random_flip",
    "random_resized_crop",
]
