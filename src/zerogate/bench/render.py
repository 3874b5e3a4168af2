"""A table as a pure function of its definition and records: rows of cells, which Markdown, CSV and JSON spell out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zerogate.bench import columns
from zerogate.bench.columns import Value
from zerogate.bench.goals import Chosen, figures_of, goals_of, smallest
from zerogate.bench.records import Record
from zerogate.bench.table import Plain, Row, Table
from zerogate.report.text import markdown_table


@dataclass
class Line:
    """A row as it is shown."""

    id: str
    label: str
    cells: dict[str, Value]  # by the names of columns
    n: int = 0  # runs
    goal: str = ""  # its goals and whether they are met
    seeds: list[int] = field(default_factory=list)  # of the runs


@dataclass
class Section:
    """A part of a table with a head of its own."""

    title: str
    columns: list[tuple[str, str]]  # name and head
    lines: list[Line]
    facts: list[str] = field(default_factory=list)  # sentences below it
    setting: str = ""  # what distinguishes it from sections of the same rows
    keys: tuple[str, ...] = ()  # what the command needs to ask for these runs

    def head(self) -> list[str]:
        """The words above the columns."""
        shown = ["", *(head for _, head in self.columns)]
        if any(line.n for line in self.lines):
            shown.append("n")
        if any(line.goal for line in self.lines):
            shown.append("goal")
        return shown

    def rows(self) -> list[list[str]]:
        """The cells as text."""
        rows = []
        for line in self.lines:
            row = [line.label, *(str(line.cells.get(name, Value())) for name, _ in self.columns)]
            if "n" in self.head():
                row.append(str(line.n or ""))
            if "goal" in self.head():
                row.append(line.goal)
            rows.append(row)
        return rows


@dataclass
class Rendered:
    """A whole table."""

    name: str
    title: str
    sections: list[Section]
    notes: list[str] = field(default_factory=list)  # sentences below all sections
    command: str = ""  # what repeats it, without the keys of its sections
    plot: Plain | None = None  # as `figures.py` reads it

    @property
    def commands(self) -> list[str]:
        """What repeats it: the command with the keys of each section, the same ones once."""
        keys = dict.fromkeys(section.keys for section in self.sections) or [()]
        return [" ".join((self.command, *own)) for own in keys if self.command]

    def markdown(self) -> str:
        """Headings, tables, sentences."""
        parts = [f"## {self.title}"]
        if commands := "\n".join(self.commands):
            parts.append(f"```\n{commands}\n```")
        for section in self.sections:
            if section.title:
                parts.append(f"### {section.title}")
            parts.append(markdown_table(section.head(), section.rows()))
            parts += section.facts
        if self.notes:
            parts.append("\n".join(f"* {note}" for note in self.notes))
        return "\n\n".join(parts)

    def csv(self) -> str:
        """A line for each row; for each column its mean and, after it, its standard deviation."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for section in self.sections:
            numbers = [name for name, _ in section.columns]
            writer.writerow(
                ["section", "row", "label", "n", *(x for name in numbers for x in (name, f"{name}_std")), "goal"]
            )
            for line in section.lines:
                cells = []
                for name in numbers:
                    cell = line.cells.get(name, Value())
                    cells += [cell.text if cell.mean is None else f"{cell.mean:.6g}",
                              "" if cell.std is None else f"{cell.std:.3g}"]  # fmt: skip
                writer.writerow([section.title, line.id, line.label, line.n or "", *cells, line.goal])
        return text.getvalue()

    def json(self) -> str:
        """Everything, with the value of every run."""
        sections = [
            {
                "title": section.title,
                "rows": [
                    {"row": line.id, "label": line.label, "n": line.n, "seeds": line.seeds, "goal": line.goal}
                    | {name: cell.text or {"mean": cell.mean, "std": cell.std, "values": list(cell.values)}
                       for name, cell in line.cells.items()}
                    for line in section.lines
                ],
                "facts": section.facts,
            }
            for section in self.sections
        ]  # fmt: skip
        whole = {"table": self.name, "title": self.title, "sections": sections, "notes": self.notes}
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def render(table: Table, records: Sequence[Record]) -> Rendered:
    """A table from records, of which those of other tables, of rows that are gone and of older recipes are not used.

    A section for each budget, and for each number of epochs where a GPU trains longer. Of a row and seed that were run
    with several configurations, the latest is shown.
    """
    current = [r for r in records if r["table"] == table.name and r["recipe"] == table.version]
    sections = []
    for budget, setting in sorted({(r["budget"], r["setting"]) for r in current}, reverse=True):
        chosen = _chosen([r for r in current if (r["budget"], r["setting"]) == (budget, setting)])
        suffix = _suffix(budget, setting)
        for title in dict.fromkeys(row.section for row in table.rows):
            rows = [row for row in table.rows if row.section == title]
            section = _section(table, rows, chosen, ", ".join(filter(None, (title, suffix))))
            if section is not None:
                section.facts += smallest(table, title, chosen)
                section.facts += _origin([r for row in rows for r in chosen.get(row.id, [])])
                section.setting, section.keys = suffix, _keys(budget, setting)
                sections.append(section)
    return Rendered(table.name, table.title, sections, list(table.notes), table.command, table.plot)


def _keys(budget: float, setting: str) -> tuple[str, ...]:
    """The keys of `zerogate bench` that ask for runs with this budget and setting."""
    keys = [part for part in setting.split(",") if "=" in part]
    return tuple([f"budget={budget:g}", *keys] if budget != 1 else keys)


def _suffix(budget: float, setting: str) -> str:
    """What follows a section's title where runs were asked for with this budget and setting."""
    words = {"cpu": "as many epochs as for a CPU", "cuda": "as many epochs as for a GPU", "": ""}
    heads = {"epochs": "epochs", "limit": "images of each split", "precision": "precision"}
    parts = []
    for part in setting.split(","):
        key, _, value = part.partition("=")
        parts.append(f"{heads[key]}: {value}" if key in heads else words.get(part, part))
    if budget != 1:
        parts.append(f"budget {budget:g}: all numbers of epochs times {budget:g}")
    return ", ".join(filter(None, parts))


def _chosen(records: Sequence[Record]) -> dict[str, list[Record]]:
    """By row, one record for each seed: that of the digest finished last; of several records of one digest, the first."""
    latest: dict[tuple[str, int], Record] = {}
    for record in sorted(records, key=lambda r: (r["finished"], r["digest"], r["check"])):
        key = (record["row"], record["seed"])
        if key not in latest or latest[key]["digest"] != record["digest"]:
            latest[key] = record
    rows: dict[str, list[Record]] = {}
    for (row, _), record in sorted(latest.items()):
        rows.setdefault(row, []).append(record)
    return rows


def _section(table: Table, rows: Sequence[Row], chosen: Chosen, title: str) -> Section | None:
    """A section of these rows; None where none of them has a record."""
    if not any(row.id in chosen for row in rows):
        return None
    lines = []
    for row in rows:
        if row.kind and row.id not in chosen:
            continue
        figures = figures_of(chosen[row.id]) if row.kind else [row.figures]
        cells = {name: columns.value(name, figures) for name in table.columns}
        seeds = [record["seed"] for record in chosen.get(row.id, ())]
        goal = "; ".join(map(str, goals_of(row, table, chosen)))
        lines.append(Line(row.id, row.label, cells, len(seeds), goal, seeds))
    heads = [(name, columns.column(name).head) for name in table.columns]
    return Section(title, non_empty(heads, lines), lines)


def non_empty(heads: Sequence[tuple[str, str]], lines: Sequence[Line]) -> list[tuple[str, str]]:
    """The columns in which any line has something."""
    return [pair for pair in heads if any(str(line.cells.get(pair[0], "")) for line in lines)]


def _origin(records: Sequence[Record]) -> list[str]:
    """A sentence: how many runs, on which devices, from which commits and when; none without records."""
    if not records:
        return []

    def joined(values: Iterable[str]) -> str:
        return ", ".join(sorted({value for value in values if value}))

    devices, commits = joined(record["device"] for record in records), joined(record["commit"] for record in records)
    torches = joined(record["versions"]["torch"] for record in records)
    seconds = [record["seconds"] for record in records if record["seconds"] is not None]
    days = sorted({record["finished"][:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    text = f"{len(records)} runs on {devices}, torch {torches}, commits {commits or 'unknown'}, {when}"
    if len(seconds) == len(records):
        text += f", {sum(seconds) / 3600:.1f} hours of runs"
    return [f"{text}."]
