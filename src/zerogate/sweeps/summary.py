"""What the searches of a comparison come to: means over seeds, as JSON, CSV, Markdown and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from omegaconf import DictConfig

from zerogate.files import write
from zerogate.report import figures
from zerogate.report.text import markdown_table
from zerogate.training.provenance import provenance_of
from zerogate.training.run_folder import Result, RunFolder, read_result, write_csv, write_json

FIGURES = ("test_accuracy", "val_accuracy", "remaining", "params", "macs", "epochs", "history")
"""What compare.json repeats of each search."""


class Row(TypedDict):
    """One kind and density: means over the seeds, and standard deviations where there are several seeds."""

    kind: str
    density: float | None  # None: a kind that is trained as it is, such as dense
    n: int
    test_accuracy: float
    test_accuracy_std: float | None
    val_accuracy: float
    val_accuracy_std: float | None
    remaining: float
    params: float
    epochs: float


class ComparisonFolder(RunFolder):
    """The folder of a comparison: a search's in each KIND_DENSITY_SEED, and what they come to."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.own = {name: self.folder / name for name in ("table.md", "table.csv", "compare.json", "plot.svg")}

    def files(self) -> list[Path]:
        """Every file of the comparison and of its searches."""
        files = [path for path in self.own.values() if path.exists()]
        for path in sorted(self.folder.glob("*_*_*/config.yaml")):
            files += RunFolder(path.parent).files()
        return super().files() + files


def summarise(
    folder: ComparisonFolder, config: DictConfig, searches: Sequence[tuple[str, str, float | None]]
) -> dict[str, Any]:
    """Writes table.md, table.csv, plot.svg and compare.json.

    Args:
        searches: name, kind of ticket and density of each; all are finished.

    Returns:
        What compare.json holds, and `table`, the rows as text.
    """
    alike: dict[tuple[str, float | None], list[Result]] = {}
    each: dict[str, dict[str, object]] = {}
    for name, kind, density in sorted(searches, key=lambda search: -(1.0 if search[2] is None else search[2])):
        result = read_result(RunFolder(folder.folder / name).result)
        alike.setdefault((kind, density), []).append(result)
        each[name] = {key: result[key] for key in FIGURES}
    rows = [average(kind, density, results) for (kind, density), results in alike.items()]
    table = table_of(rows)
    summary = {"name": config.name, "rows": rows, "searches": each, **provenance_of(config)}
    write(folder.own["table.md"], (table + "\n").encode())
    write_csv(folder.own["table.csv"], [*Row.__annotations__], rows)
    write(folder.own["plot.svg"], figures.svg(figures.accuracy_against_remaining(rows)).encode())
    write_json(folder.own["compare.json"], summary)
    return summary | {"table": table, "folder": str(folder)}


def average(kind: str, density: float | None, results: Sequence[Result]) -> Row:
    """The row of searches that differ in their seeds alone."""

    def mean(key: str) -> float:
        return statistics.mean(result[key] for result in results)

    def deviation(key: str) -> float | None:
        return statistics.stdev(result[key] for result in results) if len(results) > 1 else None

    return Row(
        kind=kind, density=density, n=len(results), test_accuracy=mean("test_accuracy"),
        test_accuracy_std=deviation("test_accuracy"), val_accuracy=mean("val_accuracy"),
        val_accuracy_std=deviation("val_accuracy"), remaining=mean("remaining"), params=mean("params"),
        epochs=mean("epochs"),
    )  # fmt: skip


def table_of(rows: Sequence[Row]) -> str:
    """The rows in Markdown; accuracies are means ± standard deviations over the seeds."""
    head = ("kind", "density", "test accuracy %", "remaining %", "parameters", "epochs", "n")
    lines = []
    for row in rows:
        spread = "" if row["test_accuracy_std"] is None else f" ± {100 * row['test_accuracy_std']:.2f}"
        density = "" if row["density"] is None else f"{row['density']:g}"
        lines.append((
            row["kind"], density, f"{100 * row['test_accuracy']:.2f}{spread}", f"{100 * row['remaining']:.2f}",
            f"{row['params']:,.0f}", f"{row['epochs']:g}", str(row["n"]),
        ))  # fmt: skip
    return markdown_table(head, lines, align=True)
