"""A run of a table in a process of its own: it locks its folder, is carried out, and is recorded."""

from __future__ import annotations

import fcntl
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zerogate.bench.jobs import Job, fill
from zerogate.bench.records import FORMAT, Records
from zerogate.files import write
from zerogate.sweeps.engine import TakenError, Task
from zerogate.training import provenance
from zerogate.training.run_folder import RunFolder


@dataclass(frozen=True)
class JobTask(Task):
    """A job as a task of a sweep."""

    job: Job
    records: Records
    outputs: Path  # in which every run of every table has its folder
    threads: int
    extra: tuple[str, ...] = ()  # overrides that do not decide results, such as data.path=DIR
    repeats: bool = False  # whether it is recorded and done again for its files alone

    outlives = True  # its folder is locked

    @property
    def name(self) -> str:
        """Its row and seed."""
        return self.job.name

    @property
    def folder(self) -> Path:
        """Where the run has its files."""
        return folder_of(self.outputs, self.job)

    @property
    def needs(self) -> list[str]:  # type: ignore[override]
        """The runs whose files or figures it takes."""
        return [need.name for need in self.job.needs]

    @property
    def epochs(self) -> int:  # type: ignore[override]
        """How many it trains itself."""
        return self.job.epochs

    @property
    def kind(self) -> tuple[str, ...]:  # type: ignore[override]
        """Runs of one kind take equally long for an epoch."""
        return self.job.pace

    @property
    def log(self) -> Path:  # type: ignore[override]
        """What its process prints."""
        return self.folder / "log.txt"

    def is_done(self) -> bool:
        """Whether it is recorded; where it is repeated, whether its files are there."""
        recorded = self.job.digest in self.records.find(self.job.table).by_digest()
        return recorded and (not self.repeats or RunFolder(self.folder).result.is_file())

    def is_taken(self) -> bool:
        """Whether a process is at it."""
        return is_locked(self.folder)

    def work(self) -> None:
        """Carries it out, or goes on with it, and records it.

        Raises:
            TakenError: another process is at it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TakenError(f"another process is at work in {self.folder}") from None
            clock = Clock(self.folder / "clock.json")
            try:
                self._record(clock)
            finally:
                clock.stop()

    def _record(self, clock: Clock) -> None:
        from zerogate.bench import torch_pruning
        from zerogate.bench.kinds import Work, carry_out  # here, since it imports what only a run needs

        job = self.job
        recorded = self.records.find(job.table).by_digest()
        folders = {need.row.id: str(folder_of(self.outputs, need)) for need in job.needs}
        figures = {need.row.id: recorded[need.digest]["figures"] for need in job.needs if need.digest in recorded}

        packages = ("pytorch-lightning", "torch-pruning")[: 2 if job.row.kind == "torch_pruning" else 1]
        origin = provenance.origin(
            *packages, folders=[torch_pruning.FOLDER]
        )  # now: the source may change while the run goes on
        done = carry_out(
            Work(
                kind=job.row.kind, seed=job.seed,
                overrides=tuple(fill(text, folders, figures) for text in job.overrides),
                options={key: fill(value, folders, figures) if isinstance(value, str) else value
                         for key, value in job.options.items()},
                extra=self.extra, folder=self.folder, total_epochs=job.total_epochs,
            )
        )  # fmt: skip
        if job.digest in self.records.find(job.table).by_digest():
            return  # it was done again for its checkpoint; what is recorded stays
        self.records.add(
            {
                "table": job.table, "row": job.row.id, "label": job.row.label, "kind": job.row.kind,
                "seed": job.seed, "budget": job.budget, "setting": job.setting, "recipe": job.recipe,
                "digest": job.digest, "command": command_of(job, self.extra),
                **origin,
                "format": FORMAT,
                "overrides": [*job.overrides, *(f"{key}: {value}" for key, value in job.options.items())],
                "config": done.config,
                "figures": {**done.figures, "threads": self.threads},
                "curve": done.curve,
                "seconds": clock.seconds(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
        )  # fmt: skip


def folder_of(outputs: Path, job: Job) -> Path:
    """The folder of a run."""
    return outputs / job.table / f"{job.row.id}-{job.seed}-{job.digest[:12]}"


def is_locked(folder: Path) -> bool:
    """Whether a process is at the run in this folder."""
    try:
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def command_of(job: Job, extra: tuple[str, ...]) -> str:
    """The command that repeats a run, without any machine's paths."""
    shown = [
        f"{key}=DIR" if key in ("data.path", "data.cache_dir") else f"{key}={value}"
        for key, _, value in (text.partition("=") for text in extra)
    ]
    shown += [f"budget={job.budget:g}"] * (job.budget != 1)
    shown += [part for part in job.setting.split(",") if "=" in part]
    return shlex.join(["zerogate", "bench", job.table, f"only={job.row.id}", f"seeds={job.seed + 1}", *shown])


class Clock:
    """Seconds of work over all sessions; None once a session has ended without saying how long it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before: Mapping[str, float | None] = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0}
        self._before = None if before.get("running") else before["seconds"]
        self._begun = time.monotonic()
        self._write(running=True)

    def _write(self, running: bool) -> None:
        write(self.path, json.dumps({"seconds": self.seconds(), "running": running}).encode())

    def seconds(self) -> float | None:
        """All seconds until now."""
        return None if self._before is None else round(self._before + time.monotonic() - self._begun, 1)

    def stop(self) -> None:
        """Keeps what there is."""
        self._write(running=False)
