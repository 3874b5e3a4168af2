"""Encoded images to uint8 tensors, once: a thread pool over Pillow, and a cache that is never trusted blindly."""

import io
import json
import logging
import os
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zerogate.data.encoded import RawSplit, Source, require
from zerogate.errors import DataError, class_and_line
from zerogate.files import write
from zerogate.modules.run import usable_cores

logger = logging.getLogger("zerogate")

FORMAT = 1  # part of the cache key: raise it when the same files would decode differently
CHUNK = 256  # images per task of the pool
MAX_THREADS = 16  # of the pool
GREY_MODES = ("L", "1")
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits; Pillow would clip, not scale, them


@dataclass(frozen=True, eq=False)
class Decoded:
    """Images uint8 [N, C, H, W] and labels int64 [N] by split; channel mean and std of `train` in [0, 1] scale."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def decode_cached(name: str, source: Source, cache_dir: str | Path | None) -> Decoded:
    """The decoded data set: read from the cache if that holds this version of the files, else decoded and cached.

    Raises:
        DataError: a file cannot be read, an image cannot be decoded, or the images are not all of one size.
    """
    folder = Path(cache_dir or os.environ.get("ZEROGATE_CACHE") or Path("~/.cache/zerogate")).expanduser()
    file = folder / f"{name}-v{FORMAT}-{source.key[:32]}.safetensors"
    cached = _read_cache(file)
    if cached is not None:
        return cached
    raw = source.read()
    images = decode(raw)
    mean, std = channel_statistics(images["train"])
    decoded = Decoded(images, {split: part.labels for split, part in raw.items()}, mean, std)
    _write_cache(file, decoded)
    return decoded


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel of uint8 [N, C, H, W] images, in [0, 1] scale.

    Summed in integers, so exact for any number of images. A constant channel gets 1 as its deviation.
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros(images.shape[1], dtype=torch.int64)
    for part in images.split(1024):
        wide = part.to(torch.int32)
        total += wide.sum((0, 2, 3))
        squares += (wide * wide).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    pairs = list(zip(total.tolist(), squares.tolist(), strict=True))
    mean = tuple(s / count / 255 for s, _ in pairs)
    std = tuple((count * q - s * s) ** 0.5 / count / 255 or 1.0 for s, q in pairs)
    return mean, std


# --- decoding ---------------------------------------------------------------------------------------------------


class _ColourFound(Exception):
    """A colour image among grey ones: all of them are decoded again, to RGB."""


def decode(raw: dict[str, RawSplit]) -> dict[str, Tensor]:
    """Decode every split to uint8 [N, C, H, W]: one channel if every image is grey, else three (RGB).

    Raises:
        DataError: an image cannot be decoded, has more than 8 bits a channel, or differs in size from the first.
    """
    pillow = require("PIL.Image")
    pillow.init()  # loads the plugins now, not in several threads at once
    train = raw["train"]
    first = _open(pillow, train, 0)
    width, height = first.size
    grey = first.mode in GREY_MODES
    while True:
        channels = 1 if grey else 3
        try:
            out = {
                split: torch.empty(len(part.items), channels, height, width, dtype=torch.uint8)
                for split, part in raw.items()
            }
        except RuntimeError as error:
            count = sum(len(part.items) for part in raw.values())
            raise DataError(
                f"{count} images of {width}x{height} do not fit into memory; resize or thin them out first"
            ) from error
        try:
            _decode_into(pillow, raw, out, first.format, f"{train.name(0)} is {width}x{height}")
            return out
        except _ColourFound:
            grey = False


def _decode_into(pillow: Any, raw: dict[str, RawSplit], out: dict[str, Tensor], guess: str, first: str) -> None:
    tasks = [(split, start) for split, part in raw.items() for start in range(0, len(part.items), CHUNK)]

    def work(task: tuple[str, int]) -> None:
        split, start = task
        _decode_chunk(pillow, raw[split], out[split], start, guess, first)

    # Pillow warns of palettes and odd metadata, image by image; what cannot be decoded raises instead. The filter is
    # set here, around the pool, because it is one for all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pool = ThreadPoolExecutor(min(usable_cores(), MAX_THREADS), thread_name_prefix="zerogate-decode")
        try:
            for _ in pool.map(work, tasks):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _decode_chunk(pillow: Any, part: RawSplit, out: Tensor, start: int, guess: str, first: str) -> None:
    numpy = require("numpy")
    target = out.numpy()
    channels, height, width = out.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    for index in range(start, min(start + CHUNK, len(part.items))):
        image = _open(pillow, part, index, guess)
        if image.size != (width, height):
            raise DataError(
                f"images differ in size: {first}, {part.name(index)} is {image.size[0]}x{image.size[1]}; "
                "resize them all to one size first"
            )
        if channels == 1 and image.mode not in GREY_MODES:
            raise _ColourFound
        try:
            data = (image if image.mode == mode else image.convert(mode)).tobytes()  # decodes
        except Exception as error:
            raise _undecodable(part, index, error) from error
        target[index] = numpy.frombuffer(data, numpy.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def _open(pillow: Any, part: RawSplit, index: int, guess: str | None = None) -> Any:
    """Opens an image without decoding it. `guess` is a format to try before all others, which halves the time."""
    item = part.items[index]
    try:
        file = io.BytesIO(item if isinstance(item, bytes) else item.read_bytes())
        try:
            image = pillow.open(file, formats=guess and [guess])
        except pillow.UnidentifiedImageError:
            image = pillow.open(file)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, … on broken files
        raise _undecodable(part, index, error) from error
    if image.mode in WIDE_MODES:
        raise DataError(f"{part.name(index)} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    return image


def _undecodable(part: RawSplit, index: int, error: Exception) -> DataError:
    reason = "not an image" if type(error).__name__ == "UnidentifiedImageError" else class_and_line(error)
    return DataError(f"{part.name(index)} cannot be decoded ({reason}); remove it or get it again")


# --- cache ------------------------------------------------------------------------------------------------------


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].numpy().data, value)
    return f"{value:08x}"


def _write_cache(file: Path, decoded: Decoded) -> None:
    """Writes the cache, whole or not at all; if that fails, the run goes on, slower the next time."""
    safetensors = require("safetensors.torch")
    tensors = {f"{split}.images": t for split, t in decoded.images.items()}
    tensors |= {f"{split}.labels": t for split, t in decoded.labels.items()}
    metadata = {
        "mean": json.dumps(decoded.mean),
        "std": json.dumps(decoded.std),
        "crc32": _checksum(tensors),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, lambda path: safetensors.save_file(tensors, path, metadata=metadata))
    except Exception as error:  # safetensors reports a full disk by its own class
        logger.warning("decoded images are not cached in %s (%s)", file.parent, class_and_line(error))


def _read_cache(file: Path) -> Decoded | None:
    """The cached data set, or None where there is none or it is damaged in any way."""
    safe_open = require("safetensors").safe_open
    try:
        if not file.is_file():
            return None
        with safe_open(file, "pt") as reader:
            metadata = reader.metadata()
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118  (not a mapping)
        if metadata["crc32"] != _checksum(tensors):
            raise ValueError("checksum")
        images = {name.removesuffix(".images"): t for name, t in tensors.items() if name.endswith(".images")}
        labels = {name.removesuffix(".labels"): t for name, t in tensors.items() if name.endswith(".labels")}
        return Decoded(images, labels, tuple(json.loads(metadata["mean"])), tuple(json.loads(metadata["std"])))
    except Exception as error:  # a damaged file can raise anything; decoding again mends it
        logger.debug("cache %s is damaged (%s); decoding again", file, class_and_line(error))
        return None
