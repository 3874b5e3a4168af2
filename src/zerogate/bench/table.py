"""Tables as data: `tables/NAME.yaml` says which rows a table has and how each is made.

A row is a reference (`figures`, published by somebody else) or is run: `kind` names the function that does so, and
`overrides` are those of `zerogate train`. `each` repeats a row for several sets of values, which `$NAME` stands for. In an
override `{run:ROW}` is the folder of another row's run with the same seed, and `{figure:ROW:NAME}` a figure of it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from zerogate.bench.records import digest
from zerogate.errors import ConfigError
from zerogate.training.config import moved

TABLES = Path(__file__).parent / "tables"
KINDS = ("train", "tickets", "torch_pruning", "latency")
PROFILES = ("cpu", "cuda")
_PLACE = re.compile(r"\{(run|figure):([^:{}]+)(?::([^{}]+))?\}")
# Of a configuration, what says where things lie and what is shown, and so does not decide a result.
_NEUTRAL = ("resume", "output", "overwrite", "overrides", "name", "data.path", "data.cache_dir", "trainer.progress",
            "trainer.log_every_n_steps", "trainer.accelerator")  # fmt: skip
PATHS = (*_NEUTRAL, "init_from", "model.source")
"""What a record leaves out of the configuration: it means something on one machine only."""
_EPOCHS = ("trainer.max_epochs", "scheduler.milestones", "search.length", "search.final_length", "search.rewind")


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        id: its name in the table. label: what the table shows. section: the part of the table that it stands in.
        kind: how it is run; "" for a reference. profile: `cpu` or `cuda` where it is meant for such a device alone.
        overrides, options: of the configuration, and of the kind itself.
        epochs: of training by profile, where they are not in the overrides.
        figures: of a reference. goal: what it should reach, as `goals.py` reads it.
    """

    id: str
    label: str
    section: str = ""
    kind: str = ""
    profile: str = ""
    overrides: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    goal: Mapping[str, Any] | None = None

    def needs(self) -> list[str]:
        """The rows whose runs or figures this one takes."""
        text = " ".join([*self.overrides, *map(str, self.options.values())])
        return list(dict.fromkeys(found[1] for found in _PLACE.findall(text)))


@dataclass(frozen=True)
class Table:
    """What `tables/NAME.yaml` holds; `source` names an older file of results in place of rows that are run."""

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    columns: tuple[str, ...] = ()
    version: int = 1
    seeds: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(PROFILES, 1))
    notes: tuple[str, ...] = ()
    command: str = ""
    source: Any = None
    smallest: tuple[Mapping[str, Any], ...] = ()
    plot: Mapping[str, Any] | None = None
    readme: Mapping[str, Any] | None = None
    alone: bool = False

    def row(self, name: str) -> Row:
        """The row of that id."""
        for row in self.rows:
            if row.id == name:
                return row
        raise ConfigError(f"table {self.name} has no row {name!r}; it has {', '.join(row.id for row in self.rows)}")

    @property
    def depends_on_device(self) -> bool:
        """Whether a CPU trains fewer epochs than a GPU."""
        return any(len(set(row.epochs.values())) > 1 for row in self.rows)


def names() -> list[str]:
    """Of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def load(name: str) -> Table:
    """A table by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in names():
        raise ConfigError(f"unknown table {name!r}; choose one of {', '.join(names())}")
    return parse(name, yaml.safe_load((TABLES / f"{name}.yaml").read_text()))


def parse(name: str, content: Mapping[str, Any]) -> Table:
    """A table from what its file holds.

    Raises:
        ConfigError: a key that is not known, a row without id, one that is there twice or needs one that is not.
    """
    content = dict(content)
    rows = tuple(row for entry in content.pop("rows", ()) for row in _rows(name, entry))
    known = set(Table.__dataclass_fields__) - {"name", "rows"}
    if content.keys() - known:
        raise ConfigError(f"table {name} has no key {min(content.keys() - known)!r}; it has {', '.join(sorted(known))}")
    lists: dict[str, Any] = {key: tuple(content.pop(key)) for key in ("columns", "notes", "smallest") if key in content}
    table = Table(name=name, rows=rows, **lists, **content)
    ids = [row.id for row in rows]
    for row in rows:
        if ids.count(row.id) > 1:
            raise ConfigError(f"table {name} has two rows {row.id!r}; give each an id of its own")
        for need in row.needs():
            table.row(need)
    return table


def _rows(table: str, entry: Mapping[str, Any]) -> list[Row]:
    known = set(Row.__dataclass_fields__) | {"each"}
    if entry.keys() - known:
        raise ConfigError(f"a row of table {table} has no key {min(entry.keys() - known)!r}; it has {sorted(known)}")
    rows = []
    for values in entry.get("each", [{}]):
        filled = _fill({key: value for key, value in entry.items() if key != "each"}, values)
        if not filled.get("id") or not filled.get("label"):
            raise ConfigError(f"a row of table {table} lacks its id or label: {filled}")
        if filled.get("kind", "") not in ("", *KINDS):
            raise ConfigError(f"row {filled['id']} has kind {filled['kind']!r}; choose one of {', '.join(KINDS)}")
        filled["overrides"] = tuple(map(str, filled.get("overrides", ())))
        rows.append(Row(**filled))
    return rows


def _fill(value: Any, values: Mapping[str, Any]) -> Any:
    """`value` with every $NAME put in; a text that is nothing but one keeps the value's type."""
    if isinstance(value, str):
        if value.startswith("$") and value[1:] in values:
            return values[value[1:]]
        return Template(value).safe_substitute({key: str(text) for key, text in values.items()})
    if isinstance(value, Mapping):
        return {key: _fill(item, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, values) for item in value]
    return value


@dataclass(frozen=True)
class Job:
    """A run of a row with a seed: what is to be done, and the digest that its record will have."""

    table: str
    row: Row
    seed: int
    budget: float
    setting: str
    recipe: int
    overrides: tuple[str, ...]
    options: Mapping[str, Any]
    config: Mapping[str, Any]
    digest: str
    needs: tuple[Job, ...]

    @property
    def epochs(self) -> int:
        """Of its own training, all stages of a search for a ticket included."""
        whole = int(self.config.get("trainer.max_epochs", 0))
        if self.row.kind == "tickets":
            each = _whole_epochs(self.config.get("search.length") or whole)
            last = _whole_epochs(self.config.get("search.final_length") or each)
            whole = int(self.config.get("search.rounds", 0)) * each + last
        return whole + int(self.options.get("learn", 0))

    @property
    def total_epochs(self) -> int:
        """Those of the runs that it starts from included."""
        before = [need.total_epochs for need in self.needs if f"{{run:{need.row.id}}}" in " ".join(self._texts())]
        return self.epochs + max(before, default=0)

    @property
    def name(self) -> str:
        """As progress shows it."""
        return f"{self.row.id} seed {self.seed}"

    @property
    def pace(self) -> tuple[str, ...]:
        """Runs that share this take equally long for an epoch."""
        keys = ("model._target_", "model.network", "data.name", "gate._target_", "sparsify.unit")
        return (
            self.table if self.row.kind == "latency" else "",
            self.row.kind,
            *(str(self.config.get(k)) for k in keys),
        )

    def _texts(self) -> list[str]:
        return [*self.row.overrides, *map(str, self.row.options.values())]


def jobs(table: Table, profile: str, seeds: Sequence[int], budget: float = 1.0, epochs: int | None = None,
         only: str = "*", limit: int | None = None, precision: str | None = None) -> list[Job]:  # fmt: skip
    """Every run that a table asks for; those that others need come before these.

    Args:
        profile: `cpu` or `cuda`. seeds: of each row. budget: a factor for every number of epochs.
        epochs: in place of the rows' own by profile. only: a pattern of the rows' ids, or several between commas.
        limit: so many images of each split. precision: of training, as `trainer.precision`.

    Raises:
        ConfigError: a configuration that cannot be composed, or a pattern that no row matches.
    """
    if epochs is not None and not any(row.epochs for row in table.rows):
        raise ConfigError(
            f"table {table.name} has its epochs in its recipe; shorten it with budget=, not epochs={epochs}"
        )
    parts = [f"epochs={epochs}" if epochs is not None else profile if table.depends_on_device else ""]
    alike = [("limit", "data.limit", limit), ("precision", "trainer.precision", precision)]
    setting = ",".join(filter(None, [*parts, *(f"{name}={value}" for name, _, value in alike if value is not None)]))
    given = [f"{key}={value}" for _, key, value in alike if value is not None]
    fitting = [row for row in table.rows if row.kind and (only != "*" or row.profile in ("", profile))]
    wanted = [row for row in fitting if any(fnmatch.fnmatch(row.id, pattern) for pattern in only.split(","))]
    if not wanted:
        raise ConfigError(f"only={only} matches no row of {table.name}; it has {', '.join(r.id for r in table.rows)}")
    made: dict[tuple[str, int], Job] = {}

    def make(row: Row, seed: int) -> Job:
        if (row.id, seed) not in made:
            needs = tuple(make(table.row(name), seed) for name in row.needs())
            made[row.id, seed] = _job(table, row, seed, budget, setting, profile, epochs, needs, given)
        return made[row.id, seed]

    for seed in seeds:
        for row in wanted:
            make(row, seed)
    return list(made.values())


def _job(table: Table, row: Row, seed: int, budget: float, setting: str, profile: str, epochs: int | None,
         needs: tuple[Job, ...], given: Sequence[str]) -> Job:  # fmt: skip
    overrides = [*row.overrides, *(given if row.kind != "latency" else ())]
    if row.epochs:
        overrides.append(f"trainer.max_epochs={epochs or row.epochs[profile]}")
    options = dict(row.options)
    if "learn" in options:
        options["learn"] = _shorter(options["learn"], budget)
    config: dict[str, Any] = {}
    if row.kind != "latency":
        known = [text for text in overrides if "{figure:" not in text]  # the others are numbers that are not there yet
        later = {
            key: _named(value) for key, _, value in (text.partition("=") for text in overrides if text not in known)
        }
        shorter = _shortened(_composed(row.kind, tuple(map(_named, known))), budget)
        config = _composed(row.kind, tuple(map(_named, known + shorter))) | {"seed": seed} | later
        overrides += shorter
    config = {key: value for key, value in config.items() if key not in _NEUTRAL}
    # In the names by which records know it: a configuration that names a public path hashes as one of before did.
    identity = {
        "table": table.name, "row": row.id, "kind": row.kind, "seed": seed, "budget": budget, "recipe": table.version,
        # An option that is off is as if it did not exist, so that one that is new later changes no digest.
        "config": moved.recorded({key: value for key, value in config.items() if value is not None and value is not False}),
        "options": moved.recorded({key: _named(value) for key, value in options.items()}),
        "needs": {need.row.id: need.digest for need in needs},
    }  # fmt: skip
    return Job(table.name, row, seed, budget, setting, table.version, tuple(overrides), options, config,
               digest(identity), needs)  # fmt: skip


def _named(text: Any) -> Any:
    """With a name in place of another run's folder or figure, which a machine's path must not replace."""
    return _PLACE.sub(lambda found: f"@{found[2]}", text) if isinstance(text, str) else text


def filled(text: Any, folders: Mapping[str, str], figures: Mapping[str, Mapping[str, Any]]) -> Any:
    """An override or option with the folders and figures of the rows that it names."""

    def put(found: re.Match[str]) -> str:
        return folders[found[2]] if found[1] == "run" else str(figures[found[2]][found[3]])

    return _PLACE.sub(put, text) if isinstance(text, str) else text


def compose(kind: str, overrides: Sequence[str]) -> Any:
    """The configuration of a run of that kind."""
    from zerogate.training.config import compose as settings

    return settings.compose(overrides, "tickets" if kind == "tickets" else "train")


@functools.cache
def _composed(kind: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    from zerogate.training.config import compose as settings

    return settings.leaves(compose(kind, overrides))


def _whole_epochs(value: Any) -> int:
    """Those of a number, or of a time such as 4ep."""
    found = re.match(r"(\d+)(ep)?$", str(value))
    return int(found[1]) if found else 0


def _shorter(value: Any, budget: float) -> Any:
    """A number of epochs, or a time such as 4ep, times `budget`; at least one epoch."""
    if isinstance(value, str):
        return re.sub(r"(\d+)ep", lambda found: f"{_shorter(int(found[1]), budget)}ep", value)
    return max(1, round(value * budget))


def _shortened(config: Mapping[str, Any], budget: float) -> list[str]:
    """Overrides that multiply every number of epochs in a configuration by `budget`."""
    if budget == 1:
        return []
    given = []
    for key in _EPOCHS:
        value = config.get(key)
        if isinstance(value, list):
            given.append(f"{key}=[{','.join(str(_shorter(item, budget)) for item in value)}]")
        elif value is not None:
            given.append(f"{key}={_shorter(value, budget)}")
    return given
