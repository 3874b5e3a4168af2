"""A run's folder: the paths of its files, and the rule that it holds one run."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerogate.errors import ConfigError
from zerogate.files import write
from zerogate.training.config.libraries import DictConfig, OmegaConf

Result = dict[str, Any]
"""What result.json holds: values that JSON has, by key."""


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a header and one line per row; numbers in full precision, None as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def read_result(path: Path) -> Result:
    """What a result.json holds."""
    result: Result = json.loads(path.read_text())
    return result


def default_folder(name: str) -> Path:
    """outputs/NAME/DATE_TIME, numbered if there is such a folder already."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path("outputs", name, stamp)
    number = 1
    while folder.exists():
        number += 1
        folder = Path("outputs", name, f"{stamp}_{number}")
    return folder


_STAGES = ("round-*", "ticket")  # folders of a search's stages


class RunFolder:
    """The paths of a run's files, and the folder's rule: it holds one run, which only resume or overwrite may touch.

    The folder of a search for a ticket holds a run folder for each of its stages.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.last = self.folder / "last.ckpt"
        self.best = self.folder / "best.ckpt"
        self.metrics = self.folder / "metrics.csv"
        self.result = self.folder / "result.json"
        self.compact = self.folder / "compact.safetensors"
        self.mask = self.folder / "mask.safetensors"

    def __str__(self) -> str:
        return str(self.folder)

    @classmethod
    def of(cls, path: str | Path) -> RunFolder:
        """The folder of a run, from its path or that of a file in it: RUN and RUN/last.ckpt mean the same."""
        path = Path(path)
        return cls(path.parent if path.is_file() else path)

    def stage(self, name: str) -> RunFolder:
        """The run folder of a stage of a search: round-1, round-2, …, ticket."""
        return RunFolder(self.folder / name)

    def files(self) -> list[Path]:
        """Every file of the run that exists, those of its stages included."""
        named = (
            self.config,
            self.last,
            self.best,
            self.metrics,
            self.result,
            self.mask,
            *self.folder.glob("compact*.safetensors"),
        )
        stages = [self.stage(path.name) for pattern in _STAGES for path in sorted(self.folder.glob(pattern))]
        existing = [path for path in named if path.exists()] + sorted(self.folder.glob("events.out.tfevents.*"))
        return existing + [path for stage in stages for path in stage.files()]

    def check_free(self, overwrite: bool) -> None:
        """Raise `ConfigError` unless a new run may begin in this folder; changes nothing."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"output={self} is a file; give a folder")
        if not overwrite and (existing := self.files()):
            raise ConfigError(
                f"output={self} already holds a run ({existing[0].name}): continue it with resume={self}, "
                "replace it with overwrite=true, or give another output"
            )

    def begin(self, config: DictConfig) -> None:
        """Create the folder, write the configuration, and delete the files of the run that it replaces."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The new configuration first: if it cannot be written, the old run is still whole.
        old = [path for path in self.files() if path != self.config]
        self.save_config(config)
        for path in old:
            path.unlink()
        for folder in sorted({path.parent for path in old} - {self.folder}, key=lambda f: len(f.parts), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()

    def save_config(self, config: DictConfig) -> None:
        """Write config.yaml, interpolations resolved."""
        write(self.config, OmegaConf.to_yaml(config, resolve=True).encode())
