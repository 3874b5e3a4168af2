"""Results as they are kept: one JSON file for every run, written once and never changed.

A record is found by its digest, a hash of what decides its result. Where it lies, when and on which machine it was made
plays no part, so that a table can be gathered over days. A second hash, over the whole record, shows damage.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerogate.errors import ZerogateError

FORMAT = 1
KEYS = {
    "format", "table", "row", "label", "kind", "seed", "budget", "setting", "recipe", "digest", "overrides", "config",
    "command", "commit", "device", "versions", "figures", "curve", "seconds", "finished", "check",
}  # fmt: skip
"""What a record holds.

* `table`, `row`, `label`, `kind`, `seed`, `budget`, `setting`, `recipe`: its place; `recipe` is the table's version.
* `overrides`, `config`: as given, and every value that came of them, paths left out.
* `command`: repeats it. `commit`: of the source; with `+` where the source differed from it.
* `figures`: numbers by name. `curve`: metrics.csv, its header and a line for every epoch.
* `seconds`: of work; None where a part of them is not known. `finished`: UTC.
"""


def digest(identity: Mapping[str, Any]) -> str:
    """A hash of plain values, the same for the same values in any order of keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its `check`."""
    content = {key: value for key, value in record.items() if key != "check"}
    return content | {"check": digest(content)}


def read(path: Path) -> dict[str, Any]:
    """A record from its file.

    Raises:
        ZerogateError: it is damaged, of another format, or no record.
    """
    way_out = "restore it, or delete it and run the table again"
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ZerogateError(f"{path} is damaged ({error}) and not used; {way_out}") from error
    if not isinstance(record, dict) or "format" not in record:
        raise ZerogateError(f"{path} is no record of zerogate bench and not used; {way_out}")
    if record["format"] != FORMAT:
        raise ZerogateError(f"{path} has format {record['format']!r}, this zerogate reads {FORMAT}; it is not used")
    if KEYS - record.keys():
        raise ZerogateError(f"{path} lacks {', '.join(sorted(KEYS - record.keys()))} and is not used; {way_out}")
    if sealed(record)["check"] != record["check"]:
        raise ZerogateError(f"{path} was changed after it had been written and is not used; {way_out}")
    return record


@dataclass
class Found:
    """The records of a table, in the order of their files' names, and a line for each that cannot be used."""

    records: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def by_digest(self) -> dict[str, dict[str, Any]]:
        """The records by their digests; of several with the same the first."""
        return {record["digest"]: record for record in reversed(self.records)}


class Records:
    """A folder with a folder of records for every table."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def find(self, table: str) -> Found:
        """All records of a table; damaged ones are named and left out."""
        found = Found()
        for path in sorted((self.folder / table).glob("*.json"), key=lambda path: path.stem):
            try:
                found.records.append(read(path))
            except ZerogateError as error:
                found.problems.append(str(error))
        return found

    def add(self, record: Mapping[str, Any]) -> Path:
        """Write a record to a file of its own, whole or not at all; no other file is touched.

        Returns:
            The file.
        """
        whole = sealed(record)
        if whole.keys() != KEYS:
            raise ZerogateError(f"a record has {', '.join(sorted(KEYS))}; got {', '.join(sorted(whole))}")
        folder = self.folder / whole["table"]
        folder.mkdir(parents=True, exist_ok=True)
        row = re.sub(r"[^\w.-]+", "_", whole["row"])
        stem = f"{row}-{whole['seed']}-{whole['digest'][:12]}"
        temporary = folder / f".{stem}.{os.getpid()}.tmp"
        number = 1
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(whole, file, indent=1, ensure_ascii=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            while True:
                path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
                try:
                    os.link(temporary, path)  # unlike a renaming, it fails where there is a file already
                    return path
                except FileExistsError:
                    number += 1
        finally:
            temporary.unlink(missing_ok=True)


def curve_of(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A header and a line for every row, values with six digits, None as nothing."""

    def text(value: Any) -> str:
        return "" if value is None or value == "" else f"{float(value):.6g}"

    return [",".join(columns), *(",".join(text(row.get(column)) for column in columns) for row in rows)]
