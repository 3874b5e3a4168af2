"""Results as they are kept: one JSON file for every run, written once and never changed.

A record is found by its digest, a hash of what decides its result. Where its file is, when and on which machine it was made
plays no part, so that a table can be gathered over days. A second hash, over the whole record, shows damage.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

from zerogate.bench.table import Plain
from zerogate.errors import ZerogateError
from zerogate.files import create

FORMAT = 1


class Record(TypedDict):
    """What a record holds."""

    format: int
    table: str
    row: str
    label: str
    kind: str
    seed: int
    budget: float
    setting: str
    recipe: int  # the table's version
    digest: str  # of what decides the result
    overrides: list[str]  # as given
    config: dict[str, object]  # every value that came of them, paths left out
    command: str  # repeats it
    commit: str  # of the source; with `+` where the source differed from it
    device: str
    versions: dict[str, str]
    figures: Plain  # numbers by name
    curve: list[str]  # metrics.csv, its header and a line for every epoch
    seconds: float | None  # of work; None where a part of them is not known
    finished: str  # in UTC
    check: str  # a hash over the whole record, which shows damage


KEYS = frozenset(Record.__annotations__)


def digest(identity: Mapping[str, object]) -> str:
    """A hash of plain values, the same for the same values in any order of keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def sealed(record: Mapping[str, object]) -> Record:
    """The record with its `check`."""
    content = {key: value for key, value in record.items() if key != "check"}
    return cast(Record, content | {"check": digest(content)})


def read(path: Path) -> Record:
    """A record from its file.

    Raises:
        ZerogateError: it is damaged, of another format, or no record.
    """
    advice = "restore it, or delete it and run the table again"
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ZerogateError(f"{path} is damaged ({error}) and not used; {advice}") from error
    if not isinstance(record, dict) or "format" not in record:
        raise ZerogateError(f"{path} is no record of zerogate bench and not used; {advice}")
    if record["format"] != FORMAT:
        raise ZerogateError(f"{path} has format {record['format']!r}, this zerogate reads {FORMAT}; it is not used")
    if KEYS - record.keys():
        raise ZerogateError(f"{path} lacks {', '.join(sorted(KEYS - record.keys()))} and is not used; {advice}")
    if sealed(record)["check"] != record["check"]:
        raise ZerogateError(f"{path} was changed after it had been written and is not used; {advice}")
    return cast(Record, record)


@dataclass
class TableRecords:
    """The records of a table, in the order of their files' names."""

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a line for each file that cannot be used

    def by_digest(self) -> dict[str, Record]:
        """The records by their digests; of several with the same digest the first."""
        return {record["digest"]: record for record in reversed(self.records)}


class Records:
    """A folder with a folder of records for every table."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def find(self, table: str) -> TableRecords:
        """All records of a table; damaged ones are named and left out."""
        of_table = TableRecords()
        for path in sorted((self.folder / table).glob("*.json"), key=lambda path: path.stem):
            try:
                of_table.records.append(read(path))
            except ZerogateError as error:
                of_table.problems.append(str(error))
        return of_table

    def add(self, record: Mapping[str, object]) -> Path:
        """Writes a record to a file of its own, whole or not at all; no other file is touched.

        Returns:
            The file.

        Raises:
            ZerogateError: the record lacks something, or has something else.
        """
        whole = sealed(record)
        if whole.keys() != KEYS:
            raise ZerogateError(f"a record has {', '.join(sorted(KEYS))}; got {', '.join(sorted(whole))}")
        folder = self.folder / whole["table"]
        folder.mkdir(parents=True, exist_ok=True)
        row = re.sub(r"[^\w.-]+", "_", whole["row"])
        stem = f"{row}-{whole['seed']}-{whole['digest'][:12]}"
        content = (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()
        for number in itertools.count(1):
            path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
            if not path.exists():
                with suppress(FileExistsError):  # another process was faster
                    create(path, content)
                    break
        return path


def curve_of(columns: Sequence[str], rows: Sequence[Mapping[str, str | float | None]]) -> list[str]:
    """A header and a line for every row, values with six digits, None as nothing."""

    def text(value: str | float | None) -> str:
        return "" if value is None or value == "" else f"{float(value):.6g}"

    return [",".join(columns), *(",".join(text(row.get(column)) for column in columns) for row in rows)]
