"""Loading, decoding and caching, on small sets made here and on the real ones where they are."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from image_sets import Image, encode, make_folder, make_parquet, np, pa, pixels, pq, refuses, rows, write_parquet
from zerogate.data import ImageData, load

REAL = Path(os.environ.get("ZEROGATE_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZEROGATE_CACHE", str(folder))
    return folder


# --- loading ----------------------------------------------------------------------------------------------------


def test_digits_are_embedded_scaled_and_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = load("digits")
    assert (data.name, data.num_classes, data.shape) == ("digits", 10, (1, 8, 8))
    assert (len(data.train), len(data.validation), len(data.test)) == (1258, 180, 359)
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    assert images.dtype == torch.uint8
    expected = np.rint(datasets.load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(x.tobytes() for x in expected) == sorted(x.numpy().tobytes() for x in images)
    whole = torch.cat([data.train.images, data.validation.images]).double() / 255
    assert data.mean[0] == pytest.approx(whole.mean().item(), rel=1e-12)
    assert data.std[0] == pytest.approx(whole.std(correction=0).item(), rel=1e-12)


def test_the_seed_moves_digits_between_training_and_validation_but_never_the_test_images() -> None:
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    assert torch.equal(first.test.images, other.test.images)


def test_parquet_shards_are_read_in_order(tmp_path: Path) -> None:
    a, b = make_parquet(tmp_path)
    data = load("folder", path=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (36, 4, 10, 4)
    assert data.shape == (3, 5, 6)
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), b)
    assert data.test.labels.tolist() == [i % 4 for i in range(10)]
    numbers = {x.transpose(2, 0, 1).tobytes(): i for i, x in enumerate(a)}
    for split in (data.train, data.validation):
        found = [numbers[x.numpy().tobytes()] for x in split.images]
        assert found == sorted(found)
        assert split.labels.tolist() == [i % 4 for i in found]
    assert not rows(data.train.images) & rows(data.validation.images)
    assert data.mean == pytest.approx(tuple(a.mean((0, 1, 2)) / 255), rel=1e-12)
    assert data.std == pytest.approx(tuple(a.std((0, 1, 2)) / 255), rel=1e-12)


@pytest.mark.parametrize("place", ["data", "plain_text"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_parquet_is_found_in_a_sub_folder_and_whatever_encoding(tmp_path: Path, place: str, format: str) -> None:
    images = pixels(12)
    (tmp_path / ".cache").mkdir()
    for split in ("train", "test"):
        file = tmp_path / place / f"{split}-00000-of-00001.parquet"
        write_parquet(file, [encode(x, format) for x in images], [0, 1] * 6, image_column="image")
    data = load("mnist", path=tmp_path, validation=2)
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), images)
    assert data.num_classes == 10


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    images = [encode(x) for x in pixels(8)]
    for split in ("train", "test"):
        column = pa.array([{"bytes": b} for b in images])
        table = pa.table({"img": column, "coarse_label": [1] * 8, "label": [2] * 8, "fine_label": [99] * 8})
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
    assert load("cifar100", path=tmp_path, validation=1).test.labels.tolist() == [99] * 8


def test_image_folders_number_their_classes_by_name(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    data = load("folder", path=str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (16, 2, 18, 3)
    assert data.test.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert np.array_equal(data.test.images[6].permute(1, 2, 0).numpy(), pixels(6, seed=11)[0])


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_validation_split_is_used_unless_a_number_is_given(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, ("train", "test", name))
    data = load("folder", path=tmp_path)
    assert (len(data.train), len(data.validation)) == (18, 18)
    assert np.array_equal(data.validation.images[0].permute(1, 2, 0).numpy(), pixels(6, seed=20)[0])
    carved = load("folder", path=tmp_path, validation=3)
    assert (len(carved.train), len(carved.validation)) == (15, 3)
    assert rows(carved.validation.images) <= rows(data.train.images)


def test_a_stratified_split_takes_the_same_number_of_every_class(tmp_path: Path) -> None:
    make_parquet(tmp_path)
    data = load("folder", path=tmp_path, validation=12, stratified=True)
    assert data.validation.labels.bincount().tolist() == [3, 3, 3, 3]
    uneven = load("folder", path=tmp_path, validation=14, stratified=True)
    assert uneven.validation.labels.bincount().tolist() == [4, 4, 3, 3]
    assert len(uneven.train) == 26
    images = [encode(x) for x in pixels(20)]
    write_parquet(tmp_path / "few" / "train-0.parquet", images, [0] * 18 + [1] * 2)
    write_parquet(tmp_path / "few" / "test-0.parquet", images[:2], [0, 1])
    refuses(
        "class 1 has 2 training images, a stratified validation split wants 3; give",
        lambda: load("folder", path=tmp_path / "few", validation=6, stratified=True),
    )


def test_limit_keeps_a_seeded_part_of_every_split(tmp_path: Path) -> None:
    make_parquet(tmp_path)
    whole, cut = load("folder", path=tmp_path), load("folder", path=tmp_path, limit=7)
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (7, 4, 7)
    assert rows(cut.train.images) <= rows(whole.train.images)
    assert not torch.equal(cut.test.images, whole.test.images[:7])
    assert torch.equal(cut.train.images, load("folder", path=tmp_path, limit=7).train.images)
    assert cut.mean == whole.mean


def test_grey_images_have_one_channel_and_any_colour_makes_all_of_them_rgb(tmp_path: Path) -> None:
    _, grey = make_parquet(tmp_path / "grey", channels=1)
    assert np.array_equal(load("folder", path=tmp_path / "grey").test.images[:, 0].numpy(), grey[..., 0])
    _, _ = make_parquet(tmp_path / "mixed", channels=1)
    colour = pixels(1)[0]
    write_parquet(tmp_path / "mixed" / "test-00000-of-00001.parquet", [encode(grey[0]), encode(colour)], [0, 1])
    data = load("folder", path=tmp_path / "mixed")
    assert data.shape == (3, 5, 6)
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), np.stack([grey[0].repeat(3, 2), colour]))


def test_palette_alpha_and_bilevel_images_decode(tmp_path: Path) -> None:
    base = Image.fromarray(pixels(1)[0])
    buffers = []
    for mode in ("P", "RGBA", "CMYK", "1"):
        buffer = io.BytesIO()
        base.convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
        buffers.append(buffer.getvalue())
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0.parquet", buffers, [0, 1, 2, 3])
    images = load("folder", path=tmp_path).test.images
    assert np.array_equal(images[1].permute(1, 2, 0).numpy(), np.asarray(base))


def test_the_hub_is_asked_when_no_path_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    _, b = make_parquet(tmp_path / "hub", image_column="image")
    asked = []

    def load_dataset(name: str) -> Any:
        asked.append((name, datasets.are_progress_bars_disabled()))
        files = {s: sorted(map(str, (tmp_path / "hub").glob(f"{s}-*"))) for s in ("train", "test")}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)})
        return datasets.DatasetDict(
            {
                s: datasets.Dataset.from_parquet(f, features=features, cache_dir=str(tmp_path / "copy"))
                for s, f in files.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    bars = datasets.are_progress_bars_disabled()
    data = load("fashion_mnist", validation=4)
    assert asked == [("zalando-datasets/fashion_mnist", True)]
    assert datasets.are_progress_bars_disabled() == bars
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1).numpy(), b)
    assert torch.equal(load("fashion_mnist", validation=4).train.images, data.train.images)


# --- the cache --------------------------------------------------------------------------------------------------


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    import zerogate.data.decoding as decoding

    calls: list[int] = []
    original = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda raw: (calls.append(1), original(raw))[1])
    return calls


def test_images_are_decoded_once_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parquet(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    calls = count_decodes(monkeypatch)
    first, second = load("folder", path=tmp_path), load("folder", path=tmp_path)
    assert len(calls) == 1
    assert [p.suffix for p in cache.iterdir()] == [".safetensors"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    for a, b in ((first.train, second.train), (first.validation, second.validation), (first.test, second.test)):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    assert (first.mean, first.std) == (second.mean, second.std)
    file = tmp_path / "test-00000-of-00001.parquet"
    write_parquet(file, [encode(x) for x in pixels(3)], [0, 1, 2])
    assert len(load("folder", path=tmp_path).test) == 3
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_cache_is_decoded_again(
    tmp_path: Path, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_parquet(tmp_path)
    expected = load("folder", path=tmp_path).test.images
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    new = {"truncate": bytes(content[:-9]), "flip": bytes(content), "empty": b"", "foreign": b"\2" + b"\0" * 7 + b"{}"}
    file.write_bytes(new[damage])
    calls = count_decodes(monkeypatch)
    assert torch.equal(load("folder", path=tmp_path).test.images, expected)
    assert len(calls) == 1
    load("folder", path=tmp_path)
    assert len(calls) == 1, "the damaged cache was not replaced"


def test_an_unwritable_cache_is_logged_and_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_parquet(tmp_path / "set")
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with caplog.at_level(logging.WARNING, "zerogate"):
        data = load("folder", path=tmp_path / "set", cache_dir=blocker / "cache")
    assert len(data.train) == 36
    assert "not cached" in caplog.text


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = pytest.importorskip("safetensors.torch")
    make_parquet(tmp_path)

    def full_disk(tensors: Any, file: Path, metadata: Any = None) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full_disk)
    assert len(load("folder", path=tmp_path).train) == 36
    assert list(cache.iterdir()) == []
    assert "No space left" in caplog.text


# --- the real sets ----------------------------------------------------------------------------------------------


def real(name: str, folder: Path, **options: Any) -> ImageData:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real {name} in {REAL}; set ZEROGATE_DATA to the folder that holds it")
    return load(name, path=REAL / name, cache_dir=folder, **options)


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def test_mnist_has_the_published_statistics(real_cache: Path) -> None:
    data = real("mnist", real_cache)
    assert data.mean[0] == pytest.approx(0.1307, abs=1e-4)
    assert data.std[0] == pytest.approx(0.3081, abs=1e-4)
    assert (len(data.train), len(data.validation), len(data.test)) == (55000, 5000, 10000)
    assert data.shape == (1, 28, 28)


def test_cifar10_has_the_published_statistics(real_cache: Path) -> None:
    data = real("cifar10", real_cache, stratified=True)
    assert data.mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-6)
    assert data.std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-6)
    assert (len(data.train), len(data.validation), len(data.test)) == (45000, 5000, 10000)
    assert data.validation.labels.bincount().tolist() == [500] * 10
    assert data.test.labels.bincount().tolist() == [1000] * 10
