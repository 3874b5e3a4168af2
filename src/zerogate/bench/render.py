"""A table as a pure function of its definition and records: rows of cells, which Markdown, CSV and JSON spell out."""

from __future__ import annotations

import csv
import fnmatch
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerogate.bench import columns
from zerogate.bench.columns import Figures, Value
from zerogate.bench.table import Row, Table
from zerogate.report.text import markdown_table

Chosen = Mapping[str, Sequence[Mapping[str, Any]]]
"""The records that a table shows, by row."""


@dataclass
class Line:
    """A row as it is shown: a label, a cell for each column, and what it is worth."""

    id: str
    label: str
    cells: dict[str, Value]
    n: int = 0
    goal: str = ""
    seeds: list[int] = field(default_factory=list)


@dataclass
class Section:
    """A part of a table with a head of its own; `facts` are sentences below it, `keys` its own ones of the command."""

    title: str
    columns: list[tuple[str, str]]
    lines: list[Line]
    facts: list[str] = field(default_factory=list)
    setting: str = ""
    keys: tuple[str, ...] = ()

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
    notes: list[str] = field(default_factory=list)
    command: str = ""
    plot: Mapping[str, Any] | None = None

    @property
    def commands(self) -> list[str]:
        """What repeats it: the command with the keys of each section, the same ones once."""
        keys = dict.fromkeys(section.keys for section in self.sections) or [()]
        return [" ".join((self.command, *own)) for own in keys if self.command]

    def markdown(self, level: int = 2) -> str:
        """Headings, tables, sentences."""
        parts = [f"{'#' * level} {self.title}"]
        if commands := "\n".join(self.commands):
            parts.append(f"```\n{commands}\n```")
        for section in self.sections:
            if section.title:
                parts.append(f"{'#' * (level + 1)} {section.title}")
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


def render(table: Table, records: Sequence[Mapping[str, Any]]) -> Rendered:
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
                section.facts += _smallest(table, title, chosen)
                section.facts += _origin([r for row in rows for r in chosen.get(row.id, [])])
                section.setting, section.keys = suffix, _keys(budget, setting)
                sections.append(section)
    return Rendered(table.name, table.title, sections, list(table.notes), table.command, table.plot)


def _keys(budget: float, setting: str) -> tuple[str, ...]:
    """Those of `zerogate bench` that ask for runs with this budget and setting."""
    given = [part for part in setting.split(",") if "=" in part]
    return tuple([f"budget={budget:g}", *given] if budget != 1 else given)


def _suffix(budget: float, setting: str) -> str:
    words = {"cpu": "as many epochs as for a CPU", "cuda": "as many epochs as for a GPU", "": ""}
    heads = {"epochs": "epochs", "limit": "images of each split", "precision": "precision"}
    parts = []
    for part in setting.split(","):
        key, _, value = part.partition("=")
        parts.append(f"{heads[key]}: {value}" if key in heads else words.get(part, part))
    if budget != 1:
        parts.append(f"budget {budget:g}: all numbers of epochs times {budget:g}")
    return ", ".join(filter(None, parts))


def _chosen(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """By row, one record for each seed: the one that was finished last, of the same digest the first."""
    latest: dict[tuple[str, int], Mapping[str, Any]] = {}
    for record in sorted(records, key=lambda r: (r["finished"], r["digest"], r["check"])):
        key = (record["row"], record["seed"])
        if key not in latest or latest[key]["digest"] != record["digest"]:
            latest[key] = record
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for (row, _), record in sorted(latest.items()):
        rows.setdefault(row, []).append(record)
    return rows


def _figures(records: Iterable[Mapping[str, Any]]) -> list[Figures]:
    return [record["figures"] | {"seconds": record["seconds"]} for record in records]


def _section(table: Table, rows: Sequence[Row], chosen: Chosen, title: str) -> Section | None:
    """None where none of the rows has a record."""
    if not any(row.id in chosen for row in rows):
        return None
    lines = []
    for row in rows:
        if row.kind and row.id not in chosen:
            continue
        figures: Sequence[Figures] = _figures(chosen[row.id]) if row.kind else [row.figures]
        cells = {name: columns.value(name, figures) for name in table.columns}
        seeds = [record["seed"] for record in chosen.get(row.id, ())]
        lines.append(Line(row.id, row.label, cells, len(seeds), _goal(row, table, chosen), seeds))
    heads = [(name, columns.column(name).head) for name in table.columns]
    return Section(title, non_empty(heads, lines), lines)


def non_empty(heads: Sequence[tuple[str, str]], lines: Sequence[Line]) -> list[tuple[str, str]]:
    """The columns in which any line has something."""
    return [pair for pair in heads if any(str(line.cells.get(pair[0], "")) for line in lines)]


def _goal(row: Row, table: Table, chosen: Chosen) -> str:
    """What the row should reach and whether its mean does: `column` at least or at most a number, or another row's mean
    (`row`, or of those that the pattern `best` names the one that is best on the validation images) plus `plus`; or each
    of a list of these."""
    if row.goal is None or row.id not in chosen:
        return ""
    said = []
    for name, wanted in row.goal.items():
        column, reached = columns.column(name), columns.value(name, _figures(chosen[row.id])).mean
        for one in wanted if isinstance(wanted, list) else [wanted]:
            limit = _limit(name, one, table, chosen)
            if reached is None or limit is None:
                continue
            sign = "≤" if column.lower else "≥"
            short = reached - limit if column.lower else limit - reached
            missed = f"missed by {short:,.{column.digits}f}" if short > 1e-9 else "met"
            said.append(f"{sign} {limit:,.{column.digits}f}: {missed}")
    return "; ".join(said)


def _limit(name: str, wanted: Any, table: Table, chosen: Chosen) -> float | None:
    """The number that a goal names, of that column; None as long as the other row has not been run."""
    if not isinstance(wanted, Mapping):
        return float(wanted)
    other = table.row(wanted["row"]) if "row" in wanted else _best(table, wanted["best"], chosen)
    if other is None:
        return None
    figures = _figures(chosen.get(other.id, [])) if other.kind else [other.figures]
    mean = columns.value(name, figures).mean
    return None if mean is None else mean + float(wanted.get("plus", 0))


def _best(table: Table, pattern: str, chosen: Chosen) -> Row | None:
    """The row that is best on the validation images, of those that match and have been run."""
    found = []
    for row in table.rows:
        if row.id in chosen and fnmatch.fnmatch(row.id, pattern):
            mean = columns.value("val_accuracy", _figures(chosen[row.id])).mean
            found += [] if mean is None else [(mean, row)]
    return max(found, key=lambda entry: entry[0], default=(0.0, None))[1]


def _smallest(table: Table, section: str, chosen: Chosen) -> list[str]:
    """For each entry of `smallest` in this section: of the rows whose mean is good enough, the one with the least."""
    said = []
    for wanted in table.smallest:
        if wanted["section"] != section:
            continue
        name, limit, least = wanted["column"], wanted["limit"], wanted["least"]
        column = columns.column(name)
        found = []
        for row in table.rows:
            if row.section == section and row.id in chosen:
                figures = _figures(chosen[row.id])
                reached, size = columns.value(name, figures), columns.value(least, figures)
                if reached.mean is not None and size.mean is not None:
                    good = reached.mean <= limit + 1e-9 if column.lower else reached.mean >= limit - 1e-9
                    found += [(size.mean, row, reached, size)] if good else []
        head = f"{wanted['what']} ({column.head} {'≤' if column.lower else '≥'} {limit:g}): "
        if found:
            _, row, reached, size = min(found, key=lambda entry: entry[0])
            said.append(
                f"{head}{row.label}, {size} {columns.column(least).head}, {reached}, n = {len(reached.values)}."
            )
        elif any(row.section == section and row.id in chosen for row in table.rows):
            said.append(f"{head}none of these rows.")
    return said


def _origin(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """On what, from which commits and when."""
    if not records:
        return []

    def each(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in records if record[key]}))

    torches = ", ".join(sorted({record["versions"]["torch"] for record in records}))
    seconds = [record["seconds"] for record in records if record["seconds"] is not None]
    days = sorted({record["finished"][:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    text = f"{len(records)} runs on {each('device')}, torch {torches}, commits {each('commit') or 'unknown'}, {when}"
    if len(seconds) == len(records):
        text += f", {sum(seconds) / 3600:.1f} hours of runs"
    return [f"{text}."]
