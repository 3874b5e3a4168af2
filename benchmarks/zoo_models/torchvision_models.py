"""torchvision: classification, segmentation and video networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models.entry import Entry, generator, images, library


def _make(function: str, **options: Any) -> nn.Module:
    models = library("torchvision").models
    for part in function.split(".")[:-1]:
        models = getattr(models, part)
    return getattr(models, function.split(".")[-1])(weights=None, **options)


def _classifier(name: str, *sizes: int, **options: Any) -> Entry:
    return Entry(f"torchvision/{name}", partial(_make, name, **options), lambda b, v: images(b, v, *sizes))


def _segmenter(name: str, *sizes: int) -> Entry:
    make = partial(_make, f"segmentation.{name}", weights_backbone=None)
    return Entry(f"torchvision/{name}", make, lambda b, v: images(b, v, *sizes))


def _video(name: str) -> Entry:
    def inputs(batch: int, variant: int) -> Tensor:
        frames, size = ((4, 64), (6, 48))[variant]
        return torch.randn(batch + variant, 3, frames, size, size, generator=generator(variant))

    return Entry(f"torchvision/{name}", partial(_make, f"video.{name}"), inputs)


def _detector(name: str, **options: Any) -> Entry:
    """Takes a list of images, and makes them one size itself. Without a threshold something is found at random weights."""
    found = {"score_thresh": 0.0, "topk_candidates": 50, "detections_per_img": 20}
    make = partial(_make, f"detection.{name}", weights_backbone=None, num_classes=5, **found, **options)
    return Entry(f"torchvision/{name}", make, lambda b, v: ([*images(b, v, 96, 128)],))


ENTRIES = (
    _classifier("alexnet", 224, 256),
    _classifier("vgg11_bn", 64, 96),
    _classifier("resnet18", 96, 128),
    _classifier("resnet50", 224, 192),
    _classifier("wide_resnet50_2", 64, 96),
    _classifier("resnext50_32x4d", 64, 96),
    _classifier("densenet121", 224, 192),
    _classifier("googlenet", 96, 128, init_weights=False),
    _classifier("inception_v3", 299, 320, init_weights=False),
    _classifier("squeezenet1_1", 96, 128),
    _classifier("shufflenet_v2_x1_0", 96, 128),
    _classifier("mobilenet_v2", 96, 128),
    _classifier("mobilenet_v3_large", 224, 192),
    _classifier("mnasnet1_0", 96, 128),
    _classifier("efficientnet_b0", 224, 192),
    _classifier("efficientnet_v2_s", 64, 96),
    _classifier("regnet_x_400mf", 96, 128),
    _classifier("regnet_y_400mf", 96, 128),
    _classifier("convnext_tiny", 96, 128),
    _classifier("vit_b_16", 224),
    _classifier("swin_t", 96, 128),
    _classifier("swin_v2_t", 96, 128),
    _classifier("maxvit_t", 224),
    _segmenter("deeplabv3_resnet50", 96, 128),
    _segmenter("fcn_resnet50", 96, 128),
    _segmenter("lraspp_mobilenet_v3_large", 96, 128),
    _detector("ssdlite320_mobilenet_v3_large"),
    _detector("retinanet_resnet50_fpn", min_size=96, max_size=128),
    _video("r3d_18"),
)
