"""Where a recorded number comes from: the source, the machine, the versions."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def commit() -> str:
    """The commit of the source that runs, with `+` where tracked source files differ from it; "" outside a repository."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    found = git("rev-parse", "--short=10", "HEAD")
    if not found or not git("ls-files", "--", "__init__.py"):  # an installed package below somebody's repository
        return ""
    return found + ("+" if git("status", "--porcelain", "--", ".") else "")


def device() -> str:
    """What runs here compute on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU"


def versions(*packages: str) -> dict[str, str]:
    """Of Python, torch, zerogate and other packages, as far as they are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("zerogate", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def origin(*packages: str) -> dict[str, Any]:
    """`commit`, `device` and `versions` of a record."""
    return {"commit": commit(), "device": device(), "versions": versions(*packages)}
