"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from zerogate.errors import ZerogateError


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: under a temporary name in the same folder, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say for which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def safetensors() -> Any:
    """The package that reads and writes tensors, which the core does without until then."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ZerogateError("saving and loading needs safetensors; pip install safetensors") from error
    return safetensors
