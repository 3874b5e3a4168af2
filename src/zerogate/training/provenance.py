"""Where a recorded number comes from: the command, the source, the machine, the versions."""

from __future__ import annotations

import functools
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import TypedDict

import torch

from zerogate.training.config.keys import command_of
from zerogate.training.config.libraries import DictConfig


class Origin(TypedDict):
    """The commit, device and versions that a record is due to."""

    commit: str
    device: str
    versions: dict[str, str]


@functools.cache  # as it was when first asked: the source may change while a run goes on
def commit() -> str:
    """The commit of the source that runs, with `+` if tracked source files differ from it; "" outside a repository."""
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=10", "HEAD")
    if not head or not git("ls-files", "--", "__init__.py"):  # an installed package below somebody's repository
        return ""
    return head + ("+" if git("status", "--porcelain", "--", ".") else "")


def device() -> str:
    """The name of the device that runs compute on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU"


def versions(*packages: str, folders: Sequence[str] = ()) -> dict[str, str]:
    """The versions of Python, torch, zerogate and other packages, of those that are installed.

    Args:
        packages: names of distributions, such as pytorch-lightning.
        folders: where to look for them beside `sys.path`.
    """
    installed = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("zerogate", *packages):
        distribution = next(iter(distributions(name=package, path=[*sys.path, *folders])), None)
        if distribution is not None:
            installed[package] = distribution.version
    return installed


def origin(*packages: str, folders: Sequence[str] = ()) -> Origin:
    """`commit`, `device` and `versions` of a record; arguments as of `versions`."""
    return {"commit": commit(), "device": device(), "versions": versions(*packages, folders=folders)}


class Provenance(Origin):
    """What a result is due to: an `Origin`, and the command."""

    command: str


def provenance_of(config: DictConfig) -> Provenance:
    """The command, commit, device and versions that the result of a configuration is due to."""
    command = shlex.join(["zerogate", command_of(config), *config.overrides])
    return {"command": command, **origin("pytorch-lightning")}
