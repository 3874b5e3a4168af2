"""A table as a function of its definition and records."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from tiny_table import TABLE, a_record, some_records
from zerogate.bench.command import options
from zerogate.bench.render import render
from zerogate.bench.table import load

RENDERED = """\
## Tiny

```
zerogate bench tiny
```

|  | test accuracy % | parameters | parameters removed % | epochs | n |
| --- | --- | --- | --- | --- | --- |
| dense | 91.00 ± 1.41 | 1,000 ± 0 | 0.0 ± 0.0 | 4 ± 0 | 2 |
| ours, 0.5 | 90.50 | 400 | 60.0 | 8 | 1 |

3 runs on a CPU, torch 2.9, commits abc, 2026-01-02, 0.1 hours of runs."""


def test_a_table_is_a_function_of_its_records() -> None:
    records = some_records()
    shown = render(TABLE, records)
    assert shown.markdown() == RENDERED
    assert render(TABLE, records[::-1]).markdown() == RENDERED
    others = [a_record(row="gone"), a_record(table="other"), a_record(recipe=0)]
    assert render(TABLE, [*records, *others]).markdown().startswith(RENDERED[:-60])
    rows = list(csv.reader(io.StringIO(shown.csv())))
    assert rows[0][:6] == ["section", "row", "label", "n", "test_accuracy", "test_accuracy_std"]
    assert rows[1][1:6] == ["dense", "dense", "2", "91", "1.41"] and rows[2][5] == ""
    section = json.loads(shown.json())["sections"][0]
    assert section["rows"][0]["test_accuracy"]["values"] == [90.0, 92.0] and section["rows"][0]["seeds"] == [0, 1]


def test_of_several_configurations_the_latest_is_shown() -> None:
    newer = a_record(digest="e0", finished="2026-02-01T00:00:00Z", figures={"test_accuracy": 0.95})
    twin = a_record(digest="d0", finished="2026-01-03T00:00:00Z", figures={"test_accuracy": 0.1})  # the same run again
    (line,) = render(TABLE, [a_record(), twin]).sections[0].lines
    assert line.cells["test_accuracy"].values == (90.0,)
    (line,) = render(TABLE, [a_record(), newer]).sections[0].lines
    assert line.cells["test_accuracy"].values == (95.0,)


def test_budgets_and_devices_have_sections_of_their_own() -> None:
    records = [a_record(), a_record(budget=0.1, digest="b0")]
    assert [s.title for s in render(TABLE, records).sections] == [
        "",
        "budget 0.1: all numbers of epochs times 0.1",
    ]
    lenet = load("lenet")
    records = [
        a_record(table="lenet", row="l300-dense", setting=setting, digest=setting)
        for setting in ("cpu", "cuda", "epochs=5,limit=600,precision=bf16-mixed")
    ]
    titles = [section.title for section in render(lenet, records).sections]
    assert titles == [
        f"LeNet-300-100, {words}"
        for words in (
            "epochs: 5, images of each split: 600, precision: bf16-mixed",
            "as many epochs as for a GPU",
            "as many epochs as for a CPU",
        )
    ]


def test_a_table_says_the_keys_that_repeat_it() -> None:
    def commands(*records: dict[str, Any]) -> list[str]:
        return render(TABLE, records).commands

    assert commands() == commands(a_record()) == commands(a_record(setting="cpu")) == ["zerogate bench tiny"]
    short = a_record(budget=0.1, setting="cpu,limit=600,precision=bf16-mixed", digest="b0")
    keys = "budget=0.1 limit=600 precision=bf16-mixed"
    assert commands(short) == [f"zerogate bench tiny {keys}"]
    assert commands(short, a_record()) == ["zerogate bench tiny", f"zerogate bench tiny {keys}"]
    given = options(keys.split())
    assert (given.budget, given.limit, given.precision) == (0.1, 600, "bf16-mixed")
