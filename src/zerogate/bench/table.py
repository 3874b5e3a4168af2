"""Tables as data: `tables/NAME.yaml` says which rows a table has and how each is made.

A row is a reference (`figures`, published by somebody else) or is run: `kind` names the function that does so, and
`overrides` are those of `zerogate train`. `each` repeats a row for several sets of values, which `$NAME` stands for. In an
override `{run:ROW}` is the folder of another row's run with the same seed, and `{figure:ROW:NAME}` a figure of it;
`jobs.py` fills these in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from zerogate.errors import ConfigError

TABLES = Path(__file__).parent / "tables"
KINDS = ("train", "tickets", "torch_pruning", "latency")
PROFILES = ("cpu", "cuda")
REFERENCE = re.compile(r"\{(run|figure):([^:{}]+)(?::([^{}]+))?\}")
"""How an override or option names another row's run, or a figure of it."""
Plain = Mapping[str, Any]
"""Names with values as YAML has them: numbers, texts, and lists and mappings of these."""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    id: str  # its name in the table
    label: str  # what the table shows
    section: str = ""  # the part of the table that it stands in
    kind: str = ""  # how it is run; "" for a reference
    profile: str = ""  # `cpu` or `cuda` where it is meant for such a device alone
    overrides: tuple[str, ...] = ()  # of the configuration
    options: Plain = field(default_factory=dict)  # of the kind itself
    epochs: Mapping[str, int] = field(default_factory=dict)  # of training by profile, where no override has them
    figures: Plain = field(default_factory=dict)  # of a reference
    goal: Plain | None = None  # what it should reach, as `goals.py` reads it

    def texts(self) -> list[str]:
        """Overrides and options as text, in which other rows are named."""
        return [*self.overrides, *map(str, self.options.values())]

    def needs(self) -> list[str]:
        """The rows whose runs or figures this one takes."""
        return list(dict.fromkeys(match[2] for text in self.texts() for match in REFERENCE.finditer(text)))

    def starts_from(self, row: str) -> bool:
        """Whether a run of this one needs the files of that row's run, not only its figures."""
        return any(f"{{run:{row}}}" in text for text in self.texts())


@dataclass(frozen=True)
class Table:
    """What `tables/NAME.yaml` holds."""

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()  # names of `columns.py`
    version: int = 1  # of the recipe: records of another one are not shown
    seeds: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PROFILES, 1))  # how many, by profile
    notes: tuple[str, ...] = ()  # sentences below the table
    command: str = ""  # what repeats it
    source: Plain | None = None  # an older file of results in place of rows that are run; `older.py` reads it
    smallest: tuple[Plain, ...] = ()  # sentences about the smallest network that is good enough; `goals.py` writes them
    plot: Plain | None = None  # as `figures.py` reads it
    readme: Plain | None = None  # which part of it the README shows, as `documents.py` reads it
    alone: bool = False  # whether its runs measure time, so that one at a time runs with all cores

    def row(self, name: str) -> Row:
        """The row of that id.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if row.id == name:
                return row
        raise ConfigError(f"table {self.name} has no row {name!r}; it has {', '.join(row.id for row in self.rows)}")

    @property
    def depends_on_device(self) -> bool:
        """Whether a CPU trains fewer epochs than a GPU."""
        return any(len(set(row.epochs.values())) > 1 for row in self.rows)


def names() -> list[str]:
    """The names of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def load(name: str) -> Table:
    """A table by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"unknown table {name!r}; choose one of {', '.join(names())}")
    return parse(name, yaml.safe_load((TABLES / f"{name}.yaml").read_text()))


def parse(name: str, content: Plain) -> Table:
    """A table from what its file holds.

    Raises:
        ConfigError: a key that is not keys, a row without id, one that is there twice or needs one that is not.
    """
    content = dict(content)
    rows = tuple(row for entry in content.pop("rows", ()) for row in _rows(name, entry))
    keys = set(Table.__dataclass_fields__) - {"name", "rows"}
    if content.keys() - keys:
        raise ConfigError(f"table {name} has no key {min(content.keys() - keys)!r}; it has {', '.join(sorted(keys))}")
    content |= {key: tuple(content[key]) for key in ("columns", "notes", "smallest") if key in content}
    table = Table(name=name, rows=rows, **content)
    ids = [row.id for row in rows]
    for row in rows:
        if ids.count(row.id) > 1:
            raise ConfigError(f"table {name} has two rows {row.id!r}; give each an id of its own")
        for need in row.needs():
            table.row(need)
    return table


def _rows(table: str, entry: Plain) -> list[Row]:
    """One row for each set of values in `each`; without any, one row."""
    keys = set(Row.__dataclass_fields__) | {"each"}
    if entry.keys() - keys:
        raise ConfigError(f"a row of table {table} has no key {min(entry.keys() - keys)!r}; it has {sorted(keys)}")
    rows = []
    for values in entry.get("each", [{}]):
        filled = {key: _fill(value, values) for key, value in entry.items() if key != "each"}
        if not filled.get("id") or not filled.get("label"):
            raise ConfigError(f"a row of table {table} lacks its id or label: {filled}")
        if filled.get("kind", "") not in ("", *KINDS):
            raise ConfigError(f"row {filled['id']} has kind {filled['kind']!r}; choose one of {', '.join(KINDS)}")
        filled["overrides"] = tuple(map(str, filled.get("overrides", ())))
        rows.append(Row(**filled))
    return rows


def _fill(value: Any, values: Plain) -> Any:
    """`value` with every $NAME put in; a text that is nothing but one keeps the value's type."""
    if isinstance(value, str):
        if value.startswith("$") and value[1:] in values:
            return values[value[1:]]
        return Template(value).safe_substitute({key: str(text) for key, text in values.items()})
    if isinstance(value, Mapping):
        return {key: _fill(item, values) for key, item in value.items()}
    return [_fill(item, values) for item in value] if isinstance(value, list) else value
