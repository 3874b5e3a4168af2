"""Imports everything that the zoo needs; processes forked after that start at once."""

from zoo_models.entry import library, missing

for name in ("torchvision", "timm", "transformers", "ultralytics", "diffusers", "peft"):
    if not missing(name):
        library(name)
