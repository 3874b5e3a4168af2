"""The runs that a table lacks, several at once, each in a process of its own, with progress and an estimate."""

from __future__ import annotations

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerogate.bench.records import Records
from zerogate.bench.table import Job
from zerogate.bench.worker import BUSY, busy
from zerogate.files import write
from zerogate.training.run_folder import Run


@dataclass
class Running:
    """A process and the job that it does."""

    job: Job
    process: subprocess.Popen[bytes]
    begun: float
    epochs_before: int


@dataclass
class Queue:
    """What is to be done, under way, done and failed.

    Args:
        jobs: those that others need before these. records: where results are kept. outputs: where runs have their folders.
        workers: processes at once. threads: of each. extra: overrides that do not decide results, such as data.path=DIR.
        say: prints a line.
    """

    jobs: Sequence[Job]
    records: Records
    outputs: Path
    workers: int
    threads: int
    extra: Sequence[str] = ()
    say: Callable[[str], None] = print
    running: list[Running] = field(default_factory=list)
    elsewhere: list[Job] = field(default_factory=list)  # other processes are at them
    failed: dict[str, str] = field(default_factory=dict)
    signum: int | None = None

    def __post_init__(self) -> None:
        table = self.jobs[0].table
        found = self.records.find(table)
        for problem in found.problems:
            self.say(problem)
        self.recorded = found.by_digest()
        wanted: dict[str, Job] = {}
        for job in reversed(self.jobs):
            if job.digest not in self.recorded or self._again(job, wanted):
                wanted[job.digest] = job
        self.missing = [job for job in self.jobs if job.digest in wanted]
        self.waiting = list(self.missing)
        self.paces: dict[tuple[str, ...], list[float]] = {}
        by_digest = {job.digest: job for job in self.jobs}
        for digest, record in self.recorded.items():
            if digest in by_digest:
                self._learn(by_digest[digest], record)

    def _again(self, job: Job, wanted: Mapping[str, Job]) -> bool:
        """Whether a recorded run must be repeated, since one that starts from it is missing and so are its files."""
        needed = any(job.digest == need.digest and f"{{run:{job.row.id}}}" in " ".join(
            [*other.overrides, *map(str, other.options.values())]
        ) for other in wanted.values() for need in other.needs)  # fmt: skip
        return needed and not Run(self.folder(job)).result.is_file()

    def folder(self, job: Job) -> Path:
        """Of a run."""
        return self.outputs / job.table / f"{job.row.id}-{job.seed}-{job.digest[:12]}"

    def _learn(self, job: Job, record: Mapping[str, Any]) -> None:
        """Remember how long an epoch took, of a run on the device that is here."""
        from zerogate.training.provenance import device

        if record["seconds"] is not None and record["device"] == device():
            self.paces.setdefault(job.pace, []).append(record["seconds"] / max(job.epochs, 1))

    def run(self) -> None:
        """Until everything is done, has failed, or a signal asks to stop; then `signum` is its number."""
        again = [job for job in self.missing if job.digest in self.recorded]
        if again:
            self.say(f"{', '.join(job.name for job in again)}: recorded, but the checkpoint that others start from is not "
                     f"under {self.outputs}; trained again, the record stays as it is")  # fmt: skip
        previous = {signum: signal.signal(signum, self._stop) for signum in (signal.SIGINT, signal.SIGTERM)}
        shown = 0.0
        try:
            while ((self.waiting or self.elsewhere) and self.signum is None) or self.running:
                changed = self._collect()
                if self.signum is None:
                    changed |= self._look_elsewhere()
                    changed |= self._start()
                if changed or time.monotonic() - shown > 60:
                    shown = time.monotonic()
                    self.say(self.progress())
                time.sleep(0.2)
        finally:
            for running in self.running:
                running.process.terminate()
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _stop(self, signum: int, frame: Any) -> None:
        if self.signum is None:
            self.say("stopping: what runs is being saved")
        self.signum = signum
        for running in self.running:
            running.process.terminate()

    def _undone(self) -> list[Job]:
        """What waits or is under way, here or elsewhere."""
        return [*self.waiting, *self.elsewhere, *(running.job for running in self.running)]

    def _ready(self, job: Job) -> bool:
        undone = {other.digest for other in self._undone()}
        return not any(need.digest in undone for need in job.needs)

    def _start(self) -> bool:
        started = False
        for job in list(self.waiting):
            if len(self.running) >= self.workers:
                break
            lacking = [need.name for need in job.needs if need.digest in self.failed]
            if lacking:
                self.waiting.remove(job)
                self.failed[job.digest] = f"{job.name} needs {', '.join(lacking)}"
            elif self._ready(job):
                self.waiting.remove(job)
                self.running.append(self._begin(job))
                started = True
        return started

    def _look_elsewhere(self) -> bool:
        """What others have done, and what they have left undone, which is ours to do."""
        ended = [job for job in self.elsewhere if not busy(self.folder(job))]
        for job in ended:
            self.elsewhere.remove(job)
            record = self.records.find(job.table).by_digest().get(job.digest)
            repeated = job.digest in self.recorded  # for the checkpoint alone
            if record is None or (repeated and not Run(self.folder(job)).result.is_file()):
                self.waiting.insert(0, job)
            else:
                self._learn(job, record)
                self.say(f"done elsewhere: {job.name}")
        return bool(ended)

    def _begin(self, job: Job) -> Running:
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        shown = [
            f"{key}=DIR" if key in ("data.path", "data.cache_dir") else f"{key}={value}"
            for key, _, value in (text.partition("=") for text in self.extra)
        ]  # no machine's paths
        shown += [f"budget={job.budget:g}"] * (job.budget != 1)
        shown += [part for part in job.setting.split(",") if "=" in part]
        task = {
            "table": job.table, "row": job.row.id, "label": job.row.label, "kind": job.row.kind, "seed": job.seed,
            "budget": job.budget, "setting": job.setting, "recipe": job.recipe, "digest": job.digest,
            "overrides": job.overrides, "options": job.options, "extra": list(self.extra), "folder": str(folder),
            "records": str(self.records.folder), "threads": self.threads, "total_epochs": job.total_epochs,
            "folders": {need.row.id: str(self.folder(need)) for need in job.needs},
            "figures": {need.row.id: need.digest for need in job.needs},
            "command": shlex.join(["zerogate", "bench", job.table, f"only={job.row.id}", f"seeds={job.seed + 1}", *shown]),
        }  # fmt: skip
        write(folder / "task.json", json.dumps(task).encode())
        threads = str(self.threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "zerogate.bench.worker", str(folder / "task.json")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        return Running(job, process, time.monotonic(), self._epochs_done(job))

    def _collect(self) -> bool:
        ended = [running for running in self.running if running.process.poll() is not None]
        for running in ended:
            self.running.remove(running)
            job, code = running.job, running.process.returncode
            if code == 0:
                record = self.records.find(job.table).by_digest()[job.digest]
                self._learn(job, record)
                seconds = record["seconds"]
                self.say(f"done: {job.name}" + ("" if seconds is None else f" in {_duration(seconds)}"))
            elif code == BUSY and self.signum is None:
                self.elsewhere.append(job)
                self.say(f"{job.name} is being run by another process; waiting for it")
            elif self.signum is None or code == 2:
                log = self.folder(job) / "log.txt"
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                reason = lines[-1] if lines and code > 0 else f"ended with code {code}"
                self.failed[job.digest] = f"{job.name}: {reason.removeprefix('zerogate: error: ')} (log: {log})"
                self.say(f"failed: {self.failed[job.digest]}")
            else:
                self.waiting.insert(0, job)
        return bool(ended)

    def _epochs_done(self, job: Job) -> int:
        """Lines of metrics.csv, of all stages."""
        return sum(max(0, path.read_text().count("\n") - 1) for path in self.folder(job).rglob("metrics.csv"))

    def pace(self, job: Job) -> float | None:
        """Seconds for an epoch of such a run, as measured here; None where none has been."""
        measured = list(self.paces.get(job.pace, []))
        for running in self.running:
            done = self._epochs_done(running.job) - running.epochs_before
            if not measured and running.job.pace == job.pace and done > 0:
                measured.append((time.monotonic() - running.begun) / done)
        return statistics.median(measured) if measured else None

    def left(self) -> tuple[float, int]:
        """Seconds until the last run ends, as far as that can be known, and how many runs could not be counted."""
        seconds: dict[str, float] = {}
        order = [*(running.job for running in self.running), *self.waiting]
        for job in order:
            pace = self.pace(job)
            if pace is not None:
                seconds[job.digest] = pace * max(max(job.epochs, 1) - self._epochs_done(job), 0)
        todo = [job for job in order if job.digest in seconds]
        now, busy = 0.0, dict[str, float]()  # when what runs will end, by digest
        while todo or busy:
            undone = {job.digest for job in todo} | busy.keys()
            ready = [job for job in todo if not any(need.digest in undone for need in job.needs)]
            for job in ready[: self.workers - len(busy)]:
                todo.remove(job)
                busy[job.digest] = now + seconds[job.digest]
            first = min(busy, key=lambda digest: busy[digest])
            now = busy.pop(first)
        return now, len(order) - len(seconds)

    def progress(self) -> str:
        """A line: what is done, what runs and how far it is, the time left."""
        done = len(self.jobs) - len(self._undone()) - len(self.failed)
        parts = [f"{done} of {len(self.jobs)} runs"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        parts += [f"{r.job.name}: epoch {self._epochs_done(r.job)}/{r.job.epochs}" if r.job.epochs else r.job.name
                  for r in self.running]  # fmt: skip
        if self.elsewhere:
            parts.append(f"{len(self.elsewhere)} by other processes")
        if self.running or self.waiting:
            seconds, unknown = self.left()
            runs = len(self.running) + len(self.waiting)
            if unknown == runs:
                parts.append("time left unknown: none of these has been measured yet")
            else:
                parts.append(f"about {_duration(seconds)} left")
            if 0 < unknown < runs:
                parts.append(f"{unknown} runs of unknown length not counted")
        return "; ".join(parts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 100 else f"{seconds:.0f} s"
