"""A table of two small runs, and records as such runs leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zerogate.bench.jobs import jobs
from zerogate.bench.records import FORMAT, Record, Records, sealed
from zerogate.bench.run import TableRun
from zerogate.bench.table import Table, parse

TINY = {
    "title": "Tiny",
    "command": "zerogate bench tiny",
    "columns": ["test_accuracy", "params", "params_removed", "epochs"],
    "rows": [
        {"id": "dense", "label": "dense", "kind": "train", "overrides": ["experiment=digits_dense", "data.limit=64",
                                                                         "model.width=4", "trainer.max_epochs=4"]},
        {"id": "ours-$p", "label": "ours, $p", "kind": "train", "each": [{"p": 0.5}],
         "overrides": ["experiment=digits", "data.limit=64", "model.width=4", "trainer.max_epochs=4", "objective=target",
                       "objective.params=$p", "init_from={run:dense}"]},
    ],
}  # fmt: skip
TABLE = parse("tiny", TINY)


def a_record(**changes: Any) -> Record:
    plain = {
        "format": FORMAT, "table": "tiny", "row": "dense", "label": "dense", "kind": "train", "seed": 0, "budget": 1.0,
        "setting": "", "recipe": 1, "digest": "d0", "overrides": [], "config": {}, "command": "zerogate bench tiny",
        "commit": "abc", "device": "a CPU", "versions": {"torch": "2.9"}, "curve": [], "seconds": 60.0,
        "figures": {"test_accuracy": 0.9, "params": 1000, "density_params": 1.0, "total_epochs": 4},
        "finished": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return sealed(plain | changes)


def some_records() -> list[Record]:
    found = []
    for seed, accuracy in enumerate((0.9, 0.92)):
        figures = {"test_accuracy": accuracy, "params": 1000, "density_params": 1.0, "total_epochs": 4}
        found.append(a_record(seed=seed, digest=f"d{seed}", figures=figures))
    figures = {"test_accuracy": 0.905, "params": 400, "density_params": 0.4, "total_epochs": 8}
    return [*found, a_record(row="ours-0.5", seed=0, digest="o0", figures=figures)]


def a_run(folder: Path, budget: float = 0.5, only: str = "*", table: Table = TABLE, extra: tuple[str, ...] = (),
          listen: Callable[[str], object] = str) -> tuple[TableRun, list[str]]:  # fmt: skip
    """The runs of the table with seed 0, one at a time, and the lines that are said, each told to `listen`."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        listen(line)

    common = (f"data.cache_dir={folder}/cache", "trainer.accelerator=cpu", *extra)
    asked = jobs(table, "cpu", [0], budget, None, only)
    return TableRun(asked, Records(folder / "records"), folder / "out", 1, 1, common, say), said
