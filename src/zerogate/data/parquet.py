"""Data sets as parquet shards: `train-00000-of-00002.parquet` and so on, with a column of images and one of labels."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerogate.data.encoded import SPLITS, RawSplit, check_splits, require, visible_folders
from zerogate.errors import DataError, class_and_line

IMAGE_COLUMNS = ("img", "image")


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Shards by split, from the folder itself, else `data/`, else its one sub-folder that has some; {} without any.

    Raises:
        DataError: several sub-folders have shards, a split is missing, or a split lacks some of its shards.
    """
    with_shards = []
    for folder in [root, root / "data", *visible_folders(root, but="data")]:
        shards = _shards(folder) if folder.is_dir() else {}
        if shards:
            with_shards.append((folder, shards))
            if folder in (root, root / "data"):
                break
    if not with_shards:
        return {}
    if len(with_shards) > 1:
        names = ", ".join(folder.name for folder, _ in with_shards)
        raise DataError(f"data path {str(root)!r} holds several data sets ({names}); give one of them with path=DIR")
    folder, shards = with_shards[0]
    check_splits(f"data path {str(folder)!r}", shards)
    for split, files in shards.items():
        total = re.search(r"-of-(\d+)$", files[0].stem)
        if total and int(total[1]) != len(files):
            raise DataError(
                f"data path {str(folder)!r} holds {len(files)} of {int(total[1])} {split} files; copy the missing ones"
            )
    return shards


def _shards(folder: Path) -> dict[str, list[Path]]:
    shards = {}
    for split, names in SPLITS.items():
        for name in names:
            files = sorted([*folder.glob(f"{name}-*.parquet"), *folder.glob(f"{name}.parquet")])
            if files:
                shards[split] = files
                break
    return shards


def read_shards(shards: dict[str, list[Path]], label_columns: Sequence[str]) -> dict[str, RawSplit]:
    """The encoded images and labels of every split.

    Raises:
        DataError: a file is damaged, or its columns are missing or of another type.
    """
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
        splits[split] = table_split(tables, label_columns, f"the {split} split of {str(files[0].parent)!r}")
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


def table_split(tables: Sequence[Any], label_columns: Sequence[str], where: str) -> RawSplit:
    """The encoded images (struct{bytes, path}, or plain binary) and labels (any integer type) of arrow tables.

    Raises:
        DataError: a column is missing, of another type, or has empty rows.
    """
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
