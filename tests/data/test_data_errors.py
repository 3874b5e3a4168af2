"""Bad data: one line that names what was found and the way out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from image_sets import Image, encode, make_folder, make_parquet, np, pa, pixels, pq, refuses, write_parquet
from zerogate.data import DATASETS, load


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZEROGATE_CACHE", str(folder))
    return folder


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    refuses("unknown data set 'cifar11'; known are digits, mnist", lambda: load("cifar11"))
    refuses("'folder' needs a path", lambda: load("folder"))
    refuses("digits is embedded.*name='folder'", lambda: load("digits", path=tmp_path))
    refuses("validation is 0;", lambda: load("digits", validation=0))
    refuses("validation is 0.1;", lambda: load("digits", validation=0.1))  # type: ignore[arg-type]
    refuses("limit is -3;", lambda: load("digits", limit=-3))
    refuses("validation=1438 leaves none of the 1438", lambda: load("digits", validation=1438))
    assert "folder" in DATASETS


def test_paths_that_hold_no_data(tmp_path: Path) -> None:
    refuses("nowhere' does not exist; give", lambda: load("cifar10", path=tmp_path / "nowhere"))
    refuses("is a file; give the folder", lambda: load("cifar10", path=Path(__file__)))
    refuses(r"holds no data set; wanted train-\*.parquet", lambda: load("cifar10", path=tmp_path))
    refuses("cannot be read", lambda: load("cifar10", path="~no-such-user-anywhere/data"))


def test_missing_splits_and_shards(tmp_path: Path) -> None:
    make_parquet(tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").rename(tmp_path / "kept")
    refuses("holds 1 of 2 train files; copy the missing", lambda: load("folder", path=tmp_path))
    (tmp_path / "kept").rename(tmp_path / "train-00001-of-00002.parquet")
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    refuses(r"has no test split \(found: train\); set some", lambda: load("folder", path=tmp_path))
    make_folder(tmp_path / "images", ("test",))
    refuses("has no train split", lambda: load("folder", path=tmp_path / "images"))
    for name in ("one", "two"):
        make_parquet(tmp_path / "many" / name)
    refuses(r"several data sets \(one, two\)", lambda: load("folder", path=tmp_path / "many"))


def test_columns_of_another_name_or_type(tmp_path: Path) -> None:
    make_parquet(tmp_path / "a", image_column="picture")
    refuses(
        "train-00000-of-00002.parquet has the columns picture, label; wanted.*img or image",
        lambda: load("folder", path=tmp_path / "a"),
    )
    make_parquet(tmp_path / "b", label_column="target")
    refuses("columns img, target; wanted.*label", lambda: load("cifar10", path=tmp_path / "b"))
    images = [encode(x) for x in pixels(2)]
    for labels, message in (
        ([0.5, 1.0], "type double; wanted integer"),
        (["a", "b"], "type string"),
        ([0, None], "1 empty rows"),
    ):
        for split in ("train", "test"):
            write_parquet(tmp_path / "c" / f"{split}-0.parquet", images, labels)
        refuses(message, lambda: load("folder", path=tmp_path / "c"))
    for split in ("train", "test"):
        pq.write_table(pa.table({"img": ["a.png"], "label": [0]}), tmp_path / "c" / f"{split}-0.parquet")
    refuses("column 'img' of .* is of type string; wanted encoded", lambda: load("folder", path=tmp_path / "c"))


@pytest.mark.parametrize("damage", ["tail", "middle", "empty"])
def test_a_damaged_parquet_file_is_named(tmp_path: Path, damage: str) -> None:
    make_parquet(tmp_path)
    file = tmp_path / "train-00001-of-00002.parquet"
    content = file.read_bytes()
    middle = content[:4] + b"\xff" * 400 + content[404:]
    file.write_bytes({"tail": content[: len(content) // 2], "middle": middle, "empty": b""}[damage])
    refuses("train-00001-of-00002.parquet' is truncated or not a parquet file", lambda: load("folder", path=tmp_path))


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    victim = tmp_path / "train" / "bee" / "3.png"
    whole = victim.read_bytes()
    for content, message in (
        (b"no image", "not an image"),
        (whole[: len(whole) // 2], "cannot be decoded"),
        (encode(pixels(1, (7, 5))[0]), "differ in size: .*0.png is 6x5, .*3.png is 7x5; resize"),
    ):
        victim.write_bytes(content)
        refuses(message, lambda: load("folder", path=tmp_path))
        refuses("bee.3.png", lambda: load("folder", path=tmp_path))
    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(victim)
    refuses(r"bee.3.png has more than 8 bits a channel \(mode I;16", lambda: load("folder", path=tmp_path))


def test_undecodable_and_odd_sized_images_in_parquet_are_numbered(tmp_path: Path) -> None:
    make_parquet(tmp_path)
    good = [encode(x) for x in pixels(3)]
    for bad, message in (
        (b"\x89PNG", "image 2 of the test split .* cannot be decoded"),
        (encode(pixels(1, (6, 6))[0]), "is 6x5, image 2 .* is 6x6"),
    ):
        write_parquet(tmp_path / "test-00000-of-00001.parquet", [*good[:2], bad], [0, 1, 2])
        refuses(message, lambda: load("folder", path=tmp_path))


def test_labels_outside_the_classes_are_counted(tmp_path: Path) -> None:
    make_parquet(tmp_path)
    refuses(
        r"train split of 'folder' has 10 labels outside 0..2, the first is 3",
        lambda: load("folder", path=tmp_path, num_classes=3),
    )
    images = [encode(x) for x in pixels(4)]
    write_parquet(tmp_path / "test-00000-of-00001.parquet", images, [0, -1, 10, 1])
    refuses(
        "test split of 'cifar10' has 2 labels outside 0..9, the first is -1", lambda: load("cifar10", path=tmp_path)
    )
    refuses("has 1 labels outside 0..10, the first is -1", lambda: load("folder", path=tmp_path))


def test_splits_without_images_and_classes_without_training_images(tmp_path: Path) -> None:
    make_parquet(tmp_path / "a")
    write_parquet(tmp_path / "a" / "test-00000-of-00001.parquet", [], pa.array([], pa.int64()))
    refuses("test split of .* holds no images", lambda: load("folder", path=tmp_path / "a"))
    make_folder(tmp_path / "b", ("test",))
    (tmp_path / "b" / "train").mkdir()
    refuses("train.CLASS' holds no images", lambda: load("folder", path=tmp_path / "b"))
    make_folder(tmp_path / "c")
    (tmp_path / "c" / "test" / "bee").rename(tmp_path / "c" / "test" / "wasp")
    refuses(
        "class folder 'wasp' of the test split is not among the 3 classes", lambda: load("folder", path=tmp_path / "c")
    )


def test_an_unreachable_hub_points_to_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str) -> Any:
        raise ConnectionError("Couldn't reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refuses("cannot get 'ylecun/mnist' from the hub.*data.path=DIR", lambda: load("mnist"))


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_parquet(tmp_path)
    for module, call in (
        ("sklearn.datasets", lambda: load("digits")),
        ("datasets", lambda: load("mnist")),
        ("pyarrow", lambda: load("folder", path=tmp_path)),
        ("PIL.Image", lambda: load("folder", path=tmp_path)),
        ("safetensors", lambda: load("folder", path=tmp_path)),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            refuses(r"needs the Python package.*pip install 'zerogate\[train\]'", call)


def test_importing_needs_torch_only() -> None:
    code = "import sys, torch; old = set(sys.modules); import zerogate.data; print(*(set(sys.modules) - old))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    loaded = {name.partition(".")[0] for name in out}
    assert not {"numpy", "PIL", "pyarrow", "datasets", "sklearn", "safetensors", "pytorch_lightning"} & loaded
