"""Records: added once, never changed, and named where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_table import a_record
from zerogate.bench.records import Records
from zerogate.errors import ZerogateError


def test_records_are_added_and_never_changed(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first = records.add(a_record())
    before = first.read_bytes()
    second = records.add(a_record(figures={"test_accuracy": 0.1}))
    assert second != first and first.read_bytes() == before
    found = records.find("tiny")
    assert len(found.records) == 2 and found.problems == []
    assert found.by_digest()["d0"]["figures"]["test_accuracy"] == 0.9  # of two for the same run the first
    assert records.find("other").records == []
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, second.name])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[1]", "no record"),
        (lambda text: text.replace("0.9,", "0.99,"), "was changed"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2"),
        (lambda text: json.dumps({"format": 1}), "lacks"),
        (lambda text: "<<<<<<< HEAD\n" + text, "damaged"),
    ],
)
def test_damaged_records_are_named_and_not_used(tmp_path: Path, damage: Any, said: str) -> None:
    records = Records(tmp_path)
    good, bad = records.add(a_record()), records.add(a_record(seed=1, digest="d1"))
    bad.write_text(damage(bad.read_text()))
    found = records.find("tiny")
    assert [record["seed"] for record in found.records] == [0] and good.is_file()
    (problem,) = found.problems
    assert str(bad) in problem and said in problem and "\n" not in problem and "not used" in problem
    assert records.add(a_record(seed=1, digest="d1")) != bad  # what is damaged is not overwritten either


def test_a_record_lacks_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZerogateError, match="a record has"):
        Records(tmp_path).add({key: value for key, value in a_record().items() if key != "commit"})
    assert list(tmp_path.iterdir()) == []
