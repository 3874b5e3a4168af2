"""Where images come from: parquet shards, a folder of images, or the hub. Finds encoded images; decodes nothing."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zerogate.data.encoded import SPLITS, RawSplit, Source, check_splits, digest_of, files_key, require
from zerogate.data.image_folder import class_files, find_split_folders, read_images
from zerogate.data.parquet import find_shards, read_shards, table_split
from zerogate.errors import DataError, class_and_line

logger = logging.getLogger("zerogate")


def open_folder(path: str | Path, label_columns: Sequence[str]) -> Source:
    """A local folder in Hugging Face parquet or imagefolder layout, its files not read yet.

    Raises:
        DataError: the path is missing or a file, or holds neither layout, or lacks training or test images.
    """
    try:
        root = Path(path).expanduser()
        if not root.exists():
            raise DataError(f"data path {str(path)!r} does not exist; give an existing folder with path=DIR")
        if not root.is_dir():
            raise DataError(f"data path {str(path)!r} is a file; give the folder that holds it with path=DIR")
        shards = find_shards(root)
        if shards:
            return Source(files_key(root, shards, label_columns), lambda: read_shards(shards, label_columns))
        folders = find_split_folders(root)
        if folders:
            files = {split: class_files(folder) for split, folder in folders.items()}
            flat = {split: [f for group in classes.values() for f in group] for split, classes in files.items()}
            return Source(files_key(root, flat), lambda: read_images(folders, files))
    except (OSError, RuntimeError) as error:  # a home folder that is unknown is a RuntimeError
        raise DataError(
            f"data path {str(path)!r} cannot be read ({class_and_line(error)}); check its permissions"
        ) from error
    raise DataError(
        f"data path {str(path)!r} holds no data set; wanted train-*.parquet and test-*.parquet "
        "(there, in data/ or in one sub-folder), or images as train/CLASS/*.png and test/CLASS/*.png"
    )


def open_hub(hub_name: str, label_columns: Sequence[str]) -> Source:
    """A data set by its name on the hub, through `datasets` (which keeps its own copy, so that later runs work offline).

    Raises:
        DataError: the hub cannot be reached or does not have the data set.
    """
    datasets = require("datasets")
    logger.info("getting %s from the hub", hub_name)
    try:
        with _quiet(datasets, require("huggingface_hub.utils")):
            parts = datasets.load_dataset(hub_name)
    except Exception as error:  # network, hub, disk and builder errors share no base class
        raise DataError(
            f"cannot get {hub_name!r} from the hub ({class_and_line(error)}); "
            "use a local copy in parquet layout with data.path=DIR"
        ) from error
    check_splits(hub_name, parts)
    splits = {ours: parts[theirs] for ours, names in SPLITS.items() for theirs in names if theirs in parts}
    version = [hub_name, *label_columns, *(f"{split}:{data._fingerprint}" for split, data in splits.items())]

    def read() -> dict[str, RawSplit]:
        return {
            split: table_split([data.with_format("arrow")[:]], label_columns, f"the {split} split of {hub_name!r}")
            for split, data in splits.items()
        }

    return Source(digest_of(version), read)


@contextlib.contextmanager
def _quiet(*libraries: Any) -> Iterator[None]:
    """Switches off the progress bars of these libraries, and their log lines of every retry."""
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
