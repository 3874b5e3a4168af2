"""What an entry of the zoo is, and how the libraries are imported."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(sys.prefix) / "zoo"
"""Where the Makefile installs benchmarks/zoo-requirements.txt: apart from the environment's own packages."""


@dataclass(frozen=True)
class Entry:
    """An architecture and what it takes.

    ``inputs(batch, variant)`` is a tensor, a tuple of positional or a dict of keyword arguments. Variant 1 has one
    example more than variant 0, and another length or image size where the model takes any.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any]

    @property
    def source(self) -> str:
        return self.name.partition("/")[0]


def missing(*names: str) -> list[str]:
    """Those of the libraries that are not installed; imports nothing and leaves the path alone."""
    return [name for name in names if PathFinder.find_spec(name, [*sys.path, str(FOLDER)]) is None]


def add_to_path() -> None:
    """Lets the zoo's own folder be found, behind everything else."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))


def library(name: str) -> ModuleType:
    """Imports a library of the zoo, without warnings about things that are none of ours."""
    add_to_path()
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # ultralytics writes a file of settings
    os.environ.setdefault("YOLO_VERBOSE", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _import_torchvision()
        module = importlib.import_module(name)
        if name == "transformers":
            module.logging.set_verbosity_error()  # token ids beyond a small vocabulary, kernels that are not installed
        return module


def _import_torchvision() -> None:
    """Imports torchvision also where its compiled operators do not fit the installed torch.

    It registers Python kernels for two operators of its compiled part, and fails if nothing has declared them.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for partial in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[partial]
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declared.impl("nms", _non_maximum_suppression, "CPU")
        _DECLARED.append(declared)
        importlib.import_module("torchvision")
        importlib.import_module("torchvision.extension")._has_ops = lambda: True


def _non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of boxes [N, 4] by falling score, without those that overlap a better one by more than the threshold."""
    left = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    best = []
    while len(left):
        first, left = left[0], left[1:]
        best.append(first)
        low = torch.maximum(boxes[first, :2], boxes[left, :2])
        high = torch.minimum(boxes[first, 2:], boxes[left, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        left = left[shared <= threshold * (area[first] + area[left] - shared)]
    return torch.stack(best) if best else left


_DECLARED: list[torch.library.Library] = []  # declarations last as long as the object that made them


def generator(variant: int) -> torch.Generator:
    """The same inputs on every call."""
    return torch.Generator().manual_seed(100 + variant)


def images(batch: int, variant: int, *sizes: int, channels: int = 3) -> Tensor:
    """[batch, channels, size, size], of the variant's size."""
    size = sizes[min(variant, len(sizes) - 1)]
    return torch.randn(batch + variant, channels, size, size, generator=generator(variant))


def tokens(batch: int, variant: int, *lengths: int, vocabulary: int) -> Tensor:
    """[batch, length] of ids without the first ten, which mean padding and the like."""
    length = lengths[min(variant, len(lengths) - 1)]
    return torch.randint(10, vocabulary, (batch + variant, length), generator=generator(variant))
