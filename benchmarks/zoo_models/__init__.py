"""The zoo: architectures of torchvision, timm, transformers, ultralytics, diffusers and peft, built from their
configurations with random weights.

`ZOO` maps names such as ``timm/ghostnet_100`` to entries. Nothing is imported or built before ``entry.make()``, and
nothing is ever downloaded.
"""

from __future__ import annotations

from zoo_models import (
    diffusers_models,
    peft_models,
    speech_and_pictures,
    timm_models,
    torchvision_models,
    transformers_text,
    ultralytics_models,
)
from zoo_models.entry import Entry

ZOO: dict[str, Entry] = {
    entry.name: entry
    for module in (
        torchvision_models,
        timm_models,
        transformers_text,
        speech_and_pictures,
        ultralytics_models,
        diffusers_models,
        peft_models,
    )
    for entry in module.ENTRIES
}

__all__ = ["ZOO", "Entry"]
