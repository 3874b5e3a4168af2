"""Data sets as folders of images: `train/CLASS/*.png` and `test/CLASS/*.png`."""

from pathlib import Path

import torch

from zerogate.data.encoded import SPLITS, RawSplit, check_splits, visible_folders
from zerogate.errors import DataError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


def find_split_folders(root: Path) -> dict[str, Path]:
    """The folder of every split; {} without any. Raises `DataError` if only some of the needed ones are there."""
    folders = {}
    for split, names in SPLITS.items():
        for name in names:
            if (root / name).is_dir():
                folders[split] = root / name
                break
    if folders:
        check_splits(f"data path {str(root)!r}", folders)
    return folders


def class_files(folder: Path) -> dict[str, list[Path]]:
    """Image files of each class folder, both in the order of their names; folders without images are no classes."""
    classes = {}
    for sub in visible_folders(folder):
        files = sorted(p for p in sub.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        if files:
            classes[sub.name] = files
    return classes


def read_images(folders: dict[str, Path], files: dict[str, dict[str, list[Path]]]) -> dict[str, RawSplit]:
    """The image files of every split with their labels; classes are numbered in the order of their folders' names.

    Args:
        folders: the folder of every split.
        files: its image files by split and class.

    Raises:
        DataError: a split has no images, or a class that the training split lacks.
    """
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
