"""Small image data sets made on the spot, in the layouts that `zerogate.data.load` reads."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from zerogate.errors import DataError, ZerogateError

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
Image = pytest.importorskip("PIL.Image")


def pixels(count: int, size: tuple[int, int] = (6, 5), channels: int = 3, seed: int = 0) -> Any:
    """Random uint8 images [count, H, W, C] of `size` = (width, height)."""
    shape = (count, size[1], size[0], channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Any, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture.save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


def write_parquet(
    file: Path, images: list[bytes], labels: list[Any], image_column: str = "img", label_column: str = "label"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array(
        [{"bytes": b, "path": None} for b in images], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({image_column: column, label_column: labels}), file)


def make_parquet(root: Path, train: int = 40, test: int = 10, channels: int = 3, **options: Any) -> tuple[Any, Any]:
    """A parquet folder of `train` images in two shards and `test` images; labels go round 0, 1, 2, 3."""
    a, b = pixels(train, channels=channels), pixels(test, channels=channels, seed=1)
    half = train // 2
    for index, part in enumerate((range(half), range(half, train))):
        file = root / f"train-{index:05d}-of-00002.parquet"
        write_parquet(file, [encode(a[i]) for i in part], [i % 4 for i in part], **options)
    write_parquet(root / "test-00000-of-00001.parquet", [encode(x) for x in b], [i % 4 for i in range(test)], **options)
    return a, b


def make_folder(root: Path, splits: tuple[str, ...] = ("train", "test"), per_class: int = 6) -> None:
    for number, split in enumerate(splits):
        for index, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i, image in enumerate(pixels(per_class, seed=10 * number + index)):
                (root / split / name / f"{i}.png").write_bytes(encode(image))


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def refuses(match: str, call: Callable[[], Any]) -> None:
    """The call raises a DataError of one line that matches."""
    with pytest.raises(DataError, match=match) as caught:
        call()
    assert isinstance(caught.value, ZerogateError)
    assert "\n" not in str(caught.value)
