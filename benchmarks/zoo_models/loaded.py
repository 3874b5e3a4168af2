"""Imports everything that the zoo needs; processes forked after that start at once."""

from zoo_models.entry import library

for name in ("torchvision", "timm", "transformers"):
    library(name)
