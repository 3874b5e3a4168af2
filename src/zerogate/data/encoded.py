"""Encoded images and where they lie: the values that every layout of a data set gives, and what all layouts share."""

import hashlib
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zerogate.errors import DataError

SPLITS: dict[str, tuple[str, ...]] = {  # our name of a split: the names it goes by in folders
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


@dataclass(frozen=True, eq=False)
class RawSplit:
    """The encoded images of one split.

    Attributes:
        items: one encoded image each, as bytes or as the file that holds them.
        labels: int64 [N], their classes.
        where: names the split in messages.

    Raises:
        DataError: there are no images.
    """

    items: Sequence[bytes | Path]
    labels: Tensor
    where: str

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError(f"{self.where} holds no images; put some there, or remove it if it is not needed")

    def name(self, index: int) -> str:
        """How messages call image `index`."""
        item = self.items[index]
        return str(item) if isinstance(item, Path) else f"image {index} of {self.where}"


@dataclass(frozen=True)
class Source:
    """A data set whose files are known but not read yet.

    Attributes:
        key: changes when its files do; names the cache of the decoded images.
        read: returns the encoded images by split.
    """

    key: str
    read: Callable[[], dict[str, RawSplit]]


def require(module: str) -> Any:
    """Import an optional package, or say which extra of zerogate brings it.

    Raises:
        DataError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"this data set needs the Python package {module.partition('.')[0]!r} ({error}); "
            "install it with: pip install 'zerogate[train]'"
        ) from error


def digest_of(parts: Sequence[str]) -> str:
    """SHA-256 of some texts in their order, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def files_key(root: Path, files: Mapping[str, Sequence[Path]], extra: Sequence[str] = ()) -> str:
    """A digest of where the files are, their names, sizes and times: what tells one version from the next."""
    parts = [str(root.resolve()), *extra]
    for split, paths in files.items():
        for path in paths:
            status = path.stat()
            parts.append(f"{split}:{path.relative_to(root)}:{status.st_size}:{status.st_mtime_ns}")
    return digest_of(parts)


def check_splits(where: str, splits: Collection[str]) -> None:
    """Raise `DataError` unless a data set has a training and a test split; `where` names it in the message."""
    for split in ("train", "test"):
        if split not in splits:
            hint = "set some images aside and name them" if split == "test" else "name the images to train on"
            raise DataError(
                f"{where} has no {split} split (found: {', '.join(splits) or 'none'}); "
                f"{hint} {split}-00000-of-00001.parquet or {split}/CLASS/*.png"
            )


def visible_folders(folder: Path, but: str = "") -> list[Path]:
    """Sub-folders by name, without hidden ones and without the one called `but`."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != but)
