"""`load`: a data set by name or folder, as three splits of uint8 tensors with the statistics to normalise them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zerogate.checks import is_whole
from zerogate.data.decoding import Decoded, channel_statistics, decode_cached
from zerogate.data.encoded import require
from zerogate.data.sources import open_folder, open_hub
from zerogate.errors import DataError


@dataclass(frozen=True)
class _HubData:
    """A data set of the hub that is known by a short name."""

    name: str
    """Its name on the hub."""
    num_classes: int
    validation: int = 5000
    """How many training images validate by default."""
    label_columns: tuple[str, ...] = ("label", "labels")
    """Names that its column of labels may have, the first that is there counts."""


_HUB = {
    "mnist": _HubData("ylecun/mnist", 10),
    "fashion_mnist": _HubData("zalando-datasets/fashion_mnist", 10),
    "cifar10": _HubData("uoft-cs/cifar10", 10),
    "cifar100": _HubData("uoft-cs/cifar100", 100, label_columns=("fine_label", "label", "labels")),
}
DATASETS: tuple[str, ...] = ("digits", *_HUB, "folder")
_FOLDER_LABELS = ("label", "labels", "fine_label")
_DIGITS_TEST_SEED = 1797  # fixed, so that a run from another seed's checkpoint is not tested on what that one saw


@dataclass(frozen=True, eq=False)
class Split:
    """One split in memory: images uint8 [N, C, H, W] and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "Split":
        """The examples at `indices` (int64 [K]), in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory; `mean` and `std` are those of the whole training set, per channel, in [0, 1] scale."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load(
    name: str,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    validation: int | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    stratified: bool = False,
    limit: int | None = None,
) -> ImageData:
    """Load a data set as uint8 tensors, decoding it once and caching the result.

    Args:
        name: one of `DATASETS`. `digits` is embedded in scikit-learn; `folder` is any local folder; the others come
            from the hub, or from `path`.
        path: a local folder in Hugging Face parquet layout (`train-*.parquet`, `test-*.parquet`, also in `data/` or
            one sub-folder) or imagefolder layout (`train/CLASS/*.png`, `test/CLASS/*.png`).
        cache_dir: where decoded images are kept; else the environment's ZEROGATE_CACHE, else ~/.cache/zerogate.
        validation: how many training images to set aside. By default 5,000 of CIFAR and MNIST, else 10 %, unless the
            folder holds a validation split of its own; a number given here takes precedence over that split.
        seed: draws the validation images, and those kept by `limit`.
        num_classes: number of classes; known for the named sets, else found from the labels.
        stratified: take equally many validation images of every class (the first classes give one more if the number
            does not divide).
        limit: keep at most this many images of each split, for quick runs. `mean` and `std` stay those of all.

    Raises:
        DataError: the data set is unknown, missing, damaged or malformed; the line says which and what to do.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(DATASETS)} (folder: any path=DIR)")
    for option, value in (("validation", validation), ("num_classes", num_classes), ("limit", limit)):
        if value is not None and not is_whole(value):
            raise DataError(f"{option} is {value!r}; give a whole number of at least 1, or leave it out")
    decoded, known_classes = _decoded(name, path, cache_dir)
    classes = num_classes or known_classes
    for split, labels in decoded.labels.items():
        _check_labels(labels, classes, f"the {split} split of {name!r}")
    splits = {split: Split(images, decoded.labels[split]) for split, images in decoded.images.items()}
    if validation is not None or "validation" not in splits:
        size = _default_validation(name, splits) if validation is None else validation
        whole = splits["train"]
        train, held_out = _validation_indices(whole.labels, size, classes, seed, stratified)
        splits["train"], splits["validation"] = whole.select(train), whole.select(held_out)
    if limit is not None:
        for split, part in splits.items():
            order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
            splits[split] = part.select(order[:limit])
    return ImageData(name, splits["train"], splits["validation"], splits["test"], classes, decoded.mean, decoded.std)


def _decoded(name: str, path: str | Path | None, cache_dir: str | Path | None) -> tuple[Decoded, int]:
    """The decoded images of a data set, and the number of its classes."""
    if name == "digits":
        if path is not None:
            raise DataError(f"digits is embedded and takes no path, got {str(path)!r}; use name='folder' for a folder")
        return _digits(), 10
    hub = _HUB.get(name)
    columns = hub.label_columns if hub else _FOLDER_LABELS
    if path is not None:
        source = open_folder(path, columns)
    elif hub:
        source = open_hub(hub.name, columns)
    else:
        raise DataError("data set 'folder' needs a path; give it with path=DIR")
    decoded = decode_cached(name, source, cache_dir)
    classes = hub.num_classes if hub else 1 + max(int(labels.max()) for labels in decoded.labels.values())
    return decoded, classes


def _default_validation(name: str, splits: dict[str, Split]) -> int:
    """How many training images a data set holds out for validation unless told otherwise."""
    if name in _HUB:
        return _HUB[name].validation
    total = sum(map(len, splits.values())) if name == "digits" else len(splits["train"])
    return max(1, round(total / 10))


def _digits() -> Decoded:
    """scikit-learn's 1,797 images of 8×8 in 17 levels, a fifth of them for testing."""
    bunch = require("sklearn.datasets").load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_DIGITS_TEST_SEED))
    count = round(len(labels) / 5)
    parts = {"train": order[count:].sort().values, "test": order[:count].sort().values}
    mean, std = channel_statistics(images[parts["train"]])
    return Decoded({s: images[i] for s, i in parts.items()}, {s: labels[i] for s, i in parts.items()}, mean, std)


def _check_labels(labels: Tensor, classes: int, where: str) -> None:
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise DataError(
            f"{where} has {len(outside)} labels outside 0..{classes - 1}, the first is {int(outside[0])}; "
            "correct them or give num_classes"
        )


def _validation_indices(labels: Tensor, size: int, classes: int, seed: int, stratified: bool) -> tuple[Tensor, Tensor]:
    """Indices to train on and to validate on, each in rising order; a pure function of its arguments."""
    count = len(labels)
    if size >= count:
        raise DataError(
            f"validation={size} leaves none of the {count} training images to train on; give a smaller validation=N"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if stratified:
        share, extra = divmod(size, classes)
        held_out = torch.cat([_of_class(order, labels, c, share + (c < extra)) for c in range(classes)])
    else:
        held_out = order[:size]
    mask = torch.zeros(count, dtype=torch.bool)
    mask[held_out] = True
    return (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)


def _of_class(order: Tensor, labels: Tensor, label: int, share: int) -> Tensor:
    members = order[labels[order] == label]
    if len(members) < share:
        raise DataError(
            f"class {label} has {len(members)} training images, a stratified validation split wants {share}; "
            "give a smaller validation=N or stratified=False"
        )
    return members[:share]
