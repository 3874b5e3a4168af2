"""Runs what a table lacks: which of its jobs that are, and the lines that say how far they have come."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import closing
from pathlib import Path

from zerogate.bench.jobs import Job
from zerogate.bench.records import Record, Records
from zerogate.bench.worker import JobTask
from zerogate.sweeps.engine import Ended, Report
from zerogate.sweeps.local import Processes
from zerogate.training import provenance

PRELOADED = ("zerogate.sweeps.preloaded", "zerogate.bench.kinds")


class TableRun:
    """The runs of a table: those that are recorded, and those that are missing.

    Args:
        jobs: of one table, those that others need before these. records: where results are kept.
        outputs: where runs have their folders. workers: processes at once. threads: of each.
        extra: overrides that do not decide results, such as data.path=DIR. say: prints a line.

    Attributes:
        tasks: what is missing. failed: why a job failed, by its name. signum: of the signal that stopped it.
        taken: the tasks that other processes are at.
    """

    def __init__(self, jobs: Sequence[Job], records: Records, outputs: Path, workers: int, threads: int,
                 extra: Sequence[str] = (), say: Callable[[str], None] = print) -> None:  # fmt: skip
        self.jobs, self.records, self.outputs = list(jobs), records, outputs
        self.workers, self.threads, self.extra, self.say = workers, threads, tuple(extra), say
        self.failed: dict[str, str] = {}
        self.signum: int | None = None
        of_table = records.find(self.jobs[0].table)
        for problem in of_table.problems:
            say(problem)
        recorded = of_table.by_digest()
        self.tasks: list[JobTask] = []
        for job in reversed(self.jobs):
            task = self.task(job, job.digest in recorded)
            if not task.repeats or (self._is_needed(job) and not task.is_done()):
                self.tasks.insert(0, task)
        self.paces = _measured(self.jobs, recorded)

    def task(self, job: Job, repeats: bool = False) -> JobTask:
        """A job as a task; one that is recorded and `repeats` is done for its files alone."""
        return JobTask(job, self.records, self.outputs, self.threads, self.extra, repeats)

    def _is_needed(self, job: Job) -> bool:
        """Whether a run that is missing starts from the files of this one."""
        return any(task.job.row.starts_from(job.row.id)
                   for task in self.tasks for need in task.job.needs if need.digest == job.digest)  # fmt: skip

    def run(self) -> None:
        """Until everything is done, has failed, or a signal asks to stop; then `signum` is its number."""
        if repeated := [task.name for task in self.tasks if task.repeats]:
            self.say(f"{', '.join(repeated)}: recorded, but the checkpoint that others start from is not under "
                     f"{self.outputs}; trained again, the record stays as it is")  # fmt: skip
        engine = Processes(self.workers, self.threads, self.paces, PRELOADED)
        with closing(engine.run(self.tasks)) as reports:
            for report in reports:
                if report.stopping:
                    self.say("stopping: what runs is being saved")
                for ended in report.ended:
                    self._tell(ended)
                self.say(self.progress(report))
        self.signum = engine.signum

    def _tell(self, ended: Ended) -> None:
        name = ended.task.name
        if ended.how == "done":
            self.say(f"done: {name}{self._took(ended)}")
        elif ended.how == "taken":
            self.say(f"{name} is being run by another process; waiting for it")
        elif ended.how == "done elsewhere":
            self.say(f"done elsewhere: {name}")
        elif ended.how == "left out":
            self.failed[name] = f"{name} {ended.reason}"
        else:
            self.failed[name] = f"{name}: {ended.reason} (log: {ended.task.log})"
            self.say(f"failed: {self.failed[name]}")

    def _took(self, ended: Ended) -> str:
        """How long the run took, with all that was done of it before; nothing where that is not known."""
        (job,) = (task.job for task in self.tasks if task.name == ended.task.name)
        seconds = self.records.find(job.table).by_digest()[job.digest]["seconds"]
        return "" if seconds is None else f" in {duration(seconds)}"

    def progress(self, report: Report) -> str:
        """A line: what is done, what runs and how far it is, the time left."""
        begun_or_not = len(report.running) + report.waiting
        done = len(self.jobs) - begun_or_not - len(report.taken) - len(self.failed)
        parts = [f"{done} of {len(self.jobs)} runs"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        parts += [f"{task.name}: epoch {task.epochs_done()}/{task.epochs}" if task.epochs else task.name
                  for task in report.running]  # fmt: skip
        if report.taken:
            parts.append(f"{len(report.taken)} by other processes")
        if begun_or_not:
            if report.uncounted == begun_or_not:
                parts.append("time left unknown: none of these has been measured yet")
            else:
                parts.append(f"about {duration(report.seconds_left)} left")
            if 0 < report.uncounted < begun_or_not:
                parts.append(f"{report.uncounted} runs of unknown length not counted")
        return "; ".join(parts)


def _measured(jobs: Sequence[Job], recorded: dict[str, Record]) -> dict[Hashable, list[float]]:
    """Seconds for an epoch by kind of run, of the runs that are recorded on a device like the one that is here."""
    paces: dict[Hashable, list[float]] = {}
    here = provenance.device()
    for job in jobs:
        record = recorded.get(job.digest)
        if record is not None and record["seconds"] is not None and record["device"] == here:
            paces.setdefault(job.pace, []).append(record["seconds"] / max(job.epochs, 1))
    return paces


def duration(seconds: float) -> str:
    """Such as 2 h 05 min, 12 min, or 50 s."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 100 else f"{seconds:.0f} s"
