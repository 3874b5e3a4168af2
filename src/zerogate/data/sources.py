"""Where images come from: parquet shards, a folder of images, or the hub. Finds encoded images; decodes nothing."""

import contextlib
import hashlib
import importlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerogate.errors import DataError, class_and_line

logger = logging.getLogger("zerogate")

SPLITS: dict[str, tuple[str, ...]] = {  # our name of a split: the names it goes by in folders
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
IMAGE_COLUMNS = ("img", "image")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Encoded images, as bytes or as files, one label each (int64 [N]); `where` names the split in messages.

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
        """What to call image `index` in a message."""
        item = self.items[index]
        return str(item) if isinstance(item, Path) else f"image {index} of {self.where}"


@dataclass(frozen=True)
class Source:
    """A data set that has been found but not read: `key` changes when its files do, `read` gets the encoded images."""

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


def open_folder(path: str | Path, label_columns: Sequence[str]) -> Source:
    """Find the splits of a local folder in Hugging Face parquet or imagefolder layout.

    Raises:
        DataError: the path is missing or a file, or holds neither layout, or lacks training or test images.
    """
    try:
        root = Path(path).expanduser()
        if not root.exists():
            raise DataError(f"data path {str(path)!r} does not exist; give an existing folder with path=DIR")
        if not root.is_dir():
            raise DataError(f"data path {str(path)!r} is a file; give the folder that holds it with path=DIR")
        shards = _find_parquet(root)
        if shards:
            return Source(_stat_key(root, shards, label_columns), lambda: _read_parquet(shards, label_columns))
        folders = _find_image_folders(root)
        if folders:
            files = {split: _class_files(folder) for split, folder in folders.items()}
            flat = {split: [f for group in classes.values() for f in group] for split, classes in files.items()}
            return Source(_stat_key(root, flat), lambda: _read_image_folder(folders, files))
    except (OSError, RuntimeError) as error:  # a home folder that is unknown is a RuntimeError
        raise DataError(
            f"data path {str(path)!r} cannot be read ({class_and_line(error)}); check its permissions"
        ) from error
    raise DataError(
        f"data path {str(path)!r} holds no data set; wanted train-*.parquet and test-*.parquet "
        "(there, in data/ or in one sub-folder), or images as train/CLASS/*.png and test/CLASS/*.png"
    )


def open_hub(hub_name: str, label_columns: Sequence[str]) -> Source:
    """Get a data set by its hub name through `datasets` (which keeps its own copy, so later runs work offline).

    Raises:
        DataError: the hub cannot be reached or does not have the data set.
    """
    datasets = require("datasets")
    logger.info("getting %s from the hub", hub_name)
    try:
        with _quiet(datasets, require("huggingface_hub.utils")):
            found = datasets.load_dataset(hub_name)
    except Exception as error:  # network, hub, disk and builder errors share no base class
        raise DataError(
            f"cannot get {hub_name!r} from the hub ({class_and_line(error)}); "
            "use a local copy in parquet layout with data.path=DIR"
        ) from error
    _check_splits(hub_name, found)
    splits = {ours: found[theirs] for ours, names in SPLITS.items() for theirs in names if theirs in found}
    parts = [hub_name, *label_columns, *(f"{split}:{data._fingerprint}" for split, data in splits.items())]

    def read() -> dict[str, RawSplit]:
        return {
            split: _table_split([data.with_format("arrow")[:]], label_columns, f"the {split} split of {hub_name!r}")
            for split, data in splits.items()
        }

    return Source(_digest(parts), read)


@contextlib.contextmanager
def _quiet(*libraries: Any) -> Iterator[None]:
    """No progress bars, and no log line for every retry of the libraries (their modules with these switches)."""
    bars = [library for library in libraries if not library.are_progress_bars_disabled()]
    levels = [(library.logging, library.logging.get_verbosity()) for library in libraries]
    try:
        for library in libraries:
            library.disable_progress_bars()
            library.logging.set_verbosity_error()
        yield
    finally:
        for library in bars:
            library.enable_progress_bars()
        for switch, level in levels:
            switch.set_verbosity(level)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _stat_key(root: Path, files: dict[str, list[Path]], extra: Sequence[str] = ()) -> str:
    """A digest of where the files are, their names, sizes and times: what tells one version from the next."""
    parts = [str(root.resolve()), *extra]
    for split, paths in files.items():
        for path in paths:
            status = path.stat()
            parts.append(f"{split}:{path.relative_to(root)}:{status.st_size}:{status.st_mtime_ns}")
    return _digest(parts)


def _check_splits(where: str, splits: Sequence[str] | dict[str, Any]) -> None:
    for split in ("train", "test"):
        if split not in splits:
            hint = "set some images aside and name them" if split == "test" else "name the images to train on"
            raise DataError(
                f"{where} has no {split} split (found: {', '.join(splits) or 'none'}); "
                f"{hint} {split}-00000-of-00001.parquet or {split}/CLASS/*.png"
            )


# --- parquet ----------------------------------------------------------------------------------------------------


def _find_parquet(root: Path) -> dict[str, list[Path]]:
    """Shards by split, from the folder itself, else `data/`, else its one sub-folder that has some."""
    candidates = [root, root / "data", *_visible_folders(root, but="data")]
    found = []
    for folder in candidates:
        shards = _shards(folder) if folder.is_dir() else {}
        if shards:
            found.append((folder, shards))
            if folder in (root, root / "data"):
                break
    if not found:
        return {}
    if len(found) > 1:
        names = ", ".join(folder.name for folder, _ in found)
        raise DataError(f"data path {str(root)!r} holds several data sets ({names}); give one of them with path=DIR")
    folder, shards = found[0]
    _check_splits(f"data path {str(folder)!r}", shards)
    for split, files in shards.items():
        total = re.search(r"-of-(\d+)$", files[0].stem)
        if total and int(total[1]) != len(files):
            raise DataError(
                f"data path {str(folder)!r} holds {len(files)} of {int(total[1])} {split} files; copy the missing ones"
            )
    return shards


def _visible_folders(folder: Path, but: str = "") -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != but)


def _shards(folder: Path) -> dict[str, list[Path]]:
    shards = {}
    for split, names in SPLITS.items():
        for name in names:
            files = sorted([*folder.glob(f"{name}-*.parquet"), *folder.glob(f"{name}.parquet")])
            if files:
                shards[split] = files
                break
    return shards


def _read_parquet(shards: dict[str, list[Path]], label_columns: Sequence[str]) -> dict[str, RawSplit]:
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    splits = {}
    for split, files in shards.items():
        tables = []
        for file in files:
            try:
                with parquet.ParquetFile(file) as reader:
                    columns = _pick_columns(reader.schema_arrow.names, label_columns, str(file))
                    tables.append(reader.read(columns=list(columns)))
            except (OSError, pyarrow.ArrowException) as error:
                raise DataError(
                    f"{str(file)!r} is truncated or not a parquet file ({class_and_line(error)}); download it again"
                ) from error
        splits[split] = _table_split(tables, label_columns, f"the {split} split of {str(files[0].parent)!r}")
    return splits


def _pick_columns(names: Sequence[str], label_columns: Sequence[str], where: str) -> tuple[str, str]:
    image = next((c for c in IMAGE_COLUMNS if c in names), None)
    label = next((c for c in label_columns if c in names), None)
    if image is None or label is None:
        raise DataError(
            f"{where} has the columns {', '.join(names) or 'none'}; wanted an image column "
            f"({' or '.join(IMAGE_COLUMNS)}) and a label column ({' or '.join(label_columns)}); rename them"
        )
    return image, label


def _table_split(tables: Sequence[Any], label_columns: Sequence[str], where: str) -> RawSplit:
    """Images (struct{bytes, path}, or plain binary) and labels (any integer type) of arrow tables."""
    pyarrow, compute = require("pyarrow"), require("pyarrow.compute")
    items: list[bytes] = []
    labels: list[Tensor] = []
    for table in tables:
        image, label = _pick_columns(table.column_names, label_columns, where)
        encoded, values = table.column(image), table.column(label)
        kind = encoded.type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            encoded = compute.struct_field(encoded, "bytes")
        if not (pyarrow.types.is_binary(encoded.type) or pyarrow.types.is_large_binary(encoded.type)):
            raise DataError(
                f"column {image!r} of {where} is of type {kind}; wanted encoded images as struct<bytes, path>"
            )
        if not pyarrow.types.is_integer(values.type):
            raise DataError(f"column {label!r} of {where} is of type {values.type}; wanted integer class labels")
        for column, name in ((encoded, image), (values, label)):
            if column.null_count:
                raise DataError(f"column {name!r} of {where} has {column.null_count} empty rows; fill or remove them")
        items += encoded.to_pylist()
        labels.append(torch.tensor(values.to_pylist(), dtype=torch.int64))
    return RawSplit(items, torch.cat(labels), where)


# --- imagefolder ------------------------------------------------------------------------------------------------


def _find_image_folders(root: Path) -> dict[str, Path]:
    folders = {}
    for split, names in SPLITS.items():
        for name in names:
            if (root / name).is_dir():
                folders[split] = root / name
                break
    if folders:
        _check_splits(f"data path {str(root)!r}", folders)
    return folders


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Image files of each class folder, both in the order of their names; folders without images are no classes."""
    classes = {}
    for sub in _visible_folders(folder):
        files = sorted(p for p in sub.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        if files:
            classes[sub.name] = files
    return classes


def _read_image_folder(folders: dict[str, Path], files: dict[str, dict[str, list[Path]]]) -> dict[str, RawSplit]:
    numbers = {name: index for index, name in enumerate(files["train"])}
    splits = {}
    for split, classes in files.items():
        items = [path for group in classes.values() for path in group]
        strangers = [name for name in classes if name not in numbers]
        if strangers:
            raise DataError(
                f"class folder {strangers[0]!r} of the {split} split is not among the {len(numbers)} classes of the "
                "training split; give it training images or remove it"
            )
        labels = [numbers[name] for name, group in classes.items() for _ in group]
        where = f"{str(folders[split] / 'CLASS')!r}"
        splits[split] = RawSplit(items, torch.tensor(labels, dtype=torch.int64), where)
    return splits
