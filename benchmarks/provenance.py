"""Where a recorded number comes from."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch


def provenance(command: str, *packages: str) -> dict[str, Any]:
    """The command, commit, device and versions (Python, torch, zerogate and ``packages``) that a record ends with."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "command": command,
        "commit": git.stdout.strip(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "zerogate", *packages)},
    }
