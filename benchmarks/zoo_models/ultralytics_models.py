"""ultralytics: YOLOs of several generations and tasks, and RT-DETR, built from their configurations."""

from __future__ import annotations

import importlib
from functools import partial

from torch import nn

from zoo_models.entry import Entry, images, library


def _make(kind: str, config: str) -> nn.Module:
    library("ultralytics")
    model: nn.Module = getattr(importlib.import_module("ultralytics.nn.tasks"), kind)(f"{config}.yaml", verbose=False)
    return model


def _yolo(config: str, kind: str = "DetectionModel", *sizes: int) -> Entry:
    sizes = sizes or (64, 96)
    return Entry(f"ultralytics/{config}", partial(_make, kind, config), lambda b, v: images(b, v, *sizes))


ENTRIES = (
    _yolo("yolov3-tiny"),
    _yolo("yolov5n"),
    _yolo("yolov6n"),
    _yolo("yolov8n"),
    _yolo("yolov8n-seg", "SegmentationModel"),
    _yolo("yolov8n-pose", "PoseModel"),
    _yolo("yolov8n-cls", "ClassificationModel"),
    _yolo("yolov8n-ghost"),
    _yolo("yolov9t"),
    _yolo("yolov10n"),
    _yolo("yolo11n"),
    _yolo("yolo11n-seg", "SegmentationModel"),
    _yolo("yolo11n-pose", "PoseModel"),
    _yolo("yolo11n-obb", "OBBModel"),
    _yolo("yolo11n-cls", "ClassificationModel"),
    _yolo("yolo12n", "DetectionModel", 128, 64),
    _yolo("yolo26n"),
    _yolo("yolo26n-seg", "SegmentationModel"),
    _yolo("yolo26n-pose", "PoseModel"),
    _yolo("rtdetr-l", "RTDETRDetectionModel"),
)
