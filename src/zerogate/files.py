"""Files that are written whole or not at all: under a temporary name in the same folder, then put in place at once.

`write` replaces a file that exists, `create` refuses to. Both take the content as bytes, or as a function that writes a
file of a given name, for libraries that write large files themselves. A process that is killed leaves at most a hidden
file that ends in ``.tmp``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from zerogate.errors import ZerogateError

Content = bytes | Callable[[Path], object]


def write(path: Path, content: Content) -> None:
    """Writes a file, or replaces it. Raises `OSError`, which names the file, where that fails; then nothing has changed."""
    with _written(path, content) as temporary:
        os.replace(temporary, path)


def create(path: Path, content: Content) -> None:
    """Writes a new file. Raises `FileExistsError` where there is one, and `OSError` where writing fails.

    Of several processes that create the same file, one succeeds.
    """
    with _written(path, content) as temporary:
        os.link(temporary, path)  # unlike a renaming, it fails where there is a file already


@contextmanager
def _written(path: Path, content: Content) -> Iterator[Path]:
    """A temporary file with the content, on disk; removed at the end, if it is still there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with open(temporary, "ab") as file:
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:  # a full disk does not say for which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def safetensors() -> ModuleType:
    """The package that reads and writes tensors; the core imports it only when something is saved or loaded."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ZerogateError("saving and loading needs safetensors; pip install safetensors") from error
    return safetensors
