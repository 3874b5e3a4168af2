"""Jobs: the runs that a table asks for, each with its configuration and the digest by which its record is found."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from zerogate.bench.records import digest
from zerogate.bench.table import REFERENCE, Plain, Row, Table
from zerogate.errors import ConfigError
from zerogate.training.config import compose as config_files
from zerogate.training.config import moved
from zerogate.training.config.keys import RECORD_NEUTRAL_KEYS

PATHS = (*RECORD_NEUTRAL_KEYS, "init_from", "model.source")
"""What a record leaves out of the configuration: it means something on one machine only."""
EPOCHS = ("trainer.max_epochs", "scheduler.milestones", "search.length", "search.final_length", "search.rewind")
"""Keys that are numbers of epochs, or times such as 4ep, which a budget shortens."""


@dataclass(frozen=True)
class Job:
    """A run of a row with a seed: what is to be done, and the digest that its record will have."""

    table: str
    row: Row
    seed: int
    budget: float  # a factor for every number of epochs
    setting: str  # what else was asked for, such as "cpu,limit=600"
    recipe: int  # the table's version
    overrides: tuple[str, ...]  # with the names of other runs in them
    options: Plain
    config: Plain  # every value by its dotted key, without those that decide nothing
    digest: str
    needs: tuple[Job, ...]

    @property
    def epochs(self) -> int:
        """How many it trains, all stages of a search for a ticket included."""
        whole = int(self.config.get("trainer.max_epochs", 0))
        if self.row.kind == "tickets":
            each = _whole_epochs(self.config.get("search.length") or whole)
            last = _whole_epochs(self.config.get("search.final_length") or each)
            whole = int(self.config.get("search.rounds", 0)) * each + last
        return whole + int(self.options.get("learn", 0))

    @property
    def total_epochs(self) -> int:
        """Its own epochs and those of the run that it starts from."""
        before = [need.total_epochs for need in self.needs if self.row.starts_from(need.row.id)]
        return self.epochs + max(before, default=0)

    @property
    def name(self) -> str:
        """As lines of progress show it."""
        return f"{self.row.id} seed {self.seed}"

    @property
    def pace(self) -> tuple[str, ...]:
        """Runs that share this take equally long for an epoch."""
        keys = ("model._target_", "model.network", "data.name", "gate._target_", "sparsify.unit")
        table = self.table if self.row.kind == "latency" else ""
        return (table, self.row.kind, *(str(self.config.get(key)) for key in keys))


@dataclass(frozen=True)
class _Request:
    """What is asked for of all rows alike."""

    profile: str
    budget: float
    epochs: int | None
    overrides: tuple[str, ...]  # limit and precision
    setting: str


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
    overrides = tuple(f"{key}={value}" for _, key, value in alike if value is not None)
    request = _Request(profile, budget, epochs, overrides, setting)
    of_profile = [row for row in table.rows if row.kind and (only != "*" or row.profile in ("", profile))]
    rows = [row for row in of_profile if any(fnmatch.fnmatch(row.id, pattern) for pattern in only.split(","))]
    if not rows:
        raise ConfigError(f"only={only} matches no row of {table.name}; it has {', '.join(r.id for r in table.rows)}")
    by_row_and_seed: dict[tuple[str, int], Job] = {}

    def add(row: Row, seed: int) -> Job:
        if (row.id, seed) not in by_row_and_seed:
            needs = tuple(add(table.row(name), seed) for name in row.needs())
            by_row_and_seed[row.id, seed] = _job(table, row, seed, request, needs)
        return by_row_and_seed[row.id, seed]

    for seed in seeds:
        for row in rows:
            add(row, seed)
    return list(by_row_and_seed.values())


def _job(table: Table, row: Row, seed: int, request: _Request, needs: tuple[Job, ...]) -> Job:
    overrides = [*row.overrides]
    if row.kind != "latency":
        overrides += request.overrides
    if row.epochs:
        overrides.append(f"trainer.max_epochs={request.epochs or row.epochs[request.profile]}")
    options = dict(row.options)
    if "learn" in options:
        options["learn"] = shorten(options["learn"], request.budget)
    config: dict[str, object] = {}
    if row.kind != "latency":
        overrides, config = _configured(row.kind, overrides, request.budget)
        config |= {"seed": seed}
    config = {key: value for key, value in config.items() if key not in RECORD_NEUTRAL_KEYS}
    # In the names by which records know it: a configuration that names a public path hashes as one of before did.
    identity = {
        "table": table.name, "row": row.id, "kind": row.kind, "seed": seed, "budget": request.budget,
        "recipe": table.version,
        # An option that is off is as if it did not exist, so that one that is new later changes no digest.
        "config": moved.recorded({key: value for key, value in config.items() if value is not None and value is not False}),
        "options": moved.recorded(
            {key: _named(value) if isinstance(value, str) else value for key, value in options.items()}
        ),
        "needs": {need.row.id: need.digest for need in needs},
    }  # fmt: skip
    return Job(table.name, row, seed, request.budget, request.setting, table.version, tuple(overrides), options, config,
               digest(identity), needs)  # fmt: skip


def _configured(kind: str, overrides: Sequence[str], budget: float) -> tuple[list[str], dict[str, object]]:
    """The overrides with those that the budget adds, and every value of the configuration that they make.

    A figure of another run is a number that is not there yet: its key has the name of that run as its value.
    """
    known = [text for text in overrides if "{figure:" not in text]
    later = {key: _named(value) for key, _, value in (text.partition("=") for text in overrides if text not in known)}
    shorter = _shorter(_composed(kind, tuple(map(_named, known))), budget)
    config = _composed(kind, tuple(map(_named, [*known, *shorter])))
    return [*overrides, *shorter], {**config, **later}


def _named(text: str) -> str:
    """With a name in place of another run's folder or figure, which a machine's path must not replace."""
    return REFERENCE.sub(lambda match: f"@{match[2]}", text)


def fill(text: str, folders: Mapping[str, str], figures: Mapping[str, Plain]) -> str:
    """An override or option with the folders and figures of the rows that it names.

    Args:
        folders, figures: of the runs by row.
    """
    return REFERENCE.sub(
        lambda match: folders[match[2]] if match[1] == "run" else str(figures[match[2]][match[3]]), text
    )


def compose(kind: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run of that kind."""
    return config_files.compose(overrides, "tickets" if kind == "tickets" else "train")


@functools.cache
def _composed(kind: str, overrides: tuple[str, ...]) -> dict[str, object]:
    return config_files.leaves(compose(kind, overrides))


def _whole_epochs(value: object) -> int:
    """The epochs in a number of them, or in a time such as 4ep; 0 in any other time."""
    match = re.match(r"(\d+)(ep)?$", str(value))
    return int(match[1]) if match else 0


def shorten(value: int | str, budget: float) -> int | str:
    """A number of epochs, or a time such as 4ep, times `budget`; at least one epoch."""
    if isinstance(value, str):
        return re.sub(r"(\d+)ep", lambda match: f"{shorten(int(match[1]), budget)}ep", value)
    return max(1, round(value * budget))


def _shorter(config: Plain, budget: float) -> list[str]:
    """Overrides that multiply every number of epochs in a configuration by `budget`."""
    if budget == 1:
        return []
    overrides = []
    for key in EPOCHS:
        value = config.get(key)
        if isinstance(value, list):
            overrides.append(f"{key}=[{','.join(str(shorten(item, budget)) for item in value)}]")
        elif value is not None:
            overrides.append(f"{key}={shorten(value, budget)}")
    return overrides
