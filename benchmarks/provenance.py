"""Where a recorded number comes from."""

from __future__ import annotations

from typing import Any

import torch

from zerogate.training.provenance import origin


def provenance(command: str, *packages: str) -> dict[str, Any]:
    """The command, threads, commit, device and versions (Python, torch, zerogate and ``packages``) of a record."""
    return {"command": command, "threads": torch.get_num_threads(), **origin(*packages)}
