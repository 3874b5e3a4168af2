"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from zerogate.errors import class_and_line, first_line, one_line
from zerogate.files import Content, create, write

Put = Callable[[Path, Content], None]


@pytest.mark.parametrize("put", [write, create])
@pytest.mark.parametrize("content", [b"whole", lambda path: path.write_bytes(b"whole")], ids=["bytes", "function"])
def test_a_file_is_written_and_nothing_else(put: Put, content: Content, tmp_path: Path) -> None:
    put(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


def test_write_replaces_a_file_and_create_refuses_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match="file"):
        create(path, b"new")
    assert path.read_bytes() == b"old"
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("put", [write, create])
def test_what_fails_on_the_way_leaves_nothing(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device.*name"):
        put(tmp_path / "name", half)
    with pytest.raises(FileNotFoundError, match="missing/name"):
        put(tmp_path / "missing" / "name", b"x")

    def broken(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyError("of another library")

    with pytest.raises(KeyError):
        put(tmp_path / "name", broken)
    assert os.listdir(tmp_path) == []


def test_an_error_on_one_line() -> None:
    error = ValueError("  first\n  second  ")
    assert first_line(error) == "first" and one_line(error) == "first second"
    assert class_and_line(error) == "ValueError: first"
    assert first_line(KeyError()) == "" and one_line(KeyError()) == class_and_line(KeyError()) == "KeyError"
    assert len(class_and_line(ValueError("x" * 1000))) == len("ValueError: ") + 200
