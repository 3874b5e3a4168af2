"""Where a recorded number comes from: the source, the machine, the versions."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch


@functools.cache  # as it was when first asked: the source may change while a run goes on
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
    places = [*sys.path, str(Path(sys.prefix) / "zoo")]  # the latter is where `make zoo` installs
    for package in ("zerogate", *packages):
        installed = next(iter(distributions(name=package, path=places)), None)
        if installed is not None:
            found[package] = installed.version
    return found


def origin(*packages: str) -> dict[str, Any]:
    """`commit`, `device` and `versions` of a record."""
    return {"commit": commit(), "device": device(), "versions": versions(*packages)}
