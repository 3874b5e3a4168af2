"""Lines of the user's code: which files are the user's, and how a reason names a line."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from zerogate.groups.arguments import Place

_PACKAGE = Path(__file__).parents[1]
_INTERNAL = tuple(map(str, (Path(torch.__file__).parent, _PACKAGE / "groups", _PACKAGE / "modules")))


def is_internal(file: str) -> bool:
    """Whether a file is torch's, or one of this package's that run models."""
    return file.startswith(_INTERNAL)


def located(reason: str, module: str, place: Place) -> str:
    """A reason with the module and the line that it holds for: ``softmax over channels in head (net.py:12)``."""
    line = f" ({place[0].replace(chr(92), '/').rpartition('/')[2]}:{place[1]})" if place[0] else ""
    return f"{reason}{f' in {module}' if module else ''}{line}"


def line_of(error: Exception) -> str:
    """The innermost line of the user's code that an error came through, as in `` (net.py:12)``; "" where there is none."""
    files = str(_PACKAGE)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not is_internal(f.filename)]
    frames = [f for f in frames if not f.filename.startswith(files)]
    return located("", "", (frames[-1].filename, frames[-1].lineno or 0)) if frames else ""
