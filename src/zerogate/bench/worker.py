"""One run in a process of its own: `python -m zerogate.bench.worker TASK.json`, started by `zerogate bench`.

Exit codes: 0 done and recorded; 2 a mistake or a failing disk, said in one line; 75 another process is at it; 128 plus the
signal's number, stopped by it, and the next start goes on.
"""

from __future__ import annotations

import fcntl
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from zerogate.errors import ZerogateError

BUSY = 75


class _Clock:
    """Seconds of work over all sessions; None once a session has ended without saying how long it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        before = json.loads(path.read_text()) if path.is_file() else {"seconds": 0.0, "running": False}
        self.before: float | None = None if before["running"] else before["seconds"]
        self.begun = time.monotonic()
        self._write(running=True)

    def _write(self, running: bool) -> None:
        from zerogate.files import write

        write(self.path, json.dumps({"seconds": self.seconds(), "running": running}).encode())

    def seconds(self) -> float | None:
        """Up to now."""
        return None if self.before is None else round(self.before + time.monotonic() - self.begun, 1)

    def stop(self) -> None:
        """Keep what there is."""
        self._write(running=False)


def busy(folder: Path) -> bool:
    """Whether a process is at the run in this folder."""
    try:
        with open(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def main(path: Path) -> int:
    """Carry out the task in a file and record it."""
    job = json.loads(path.read_text())
    folder = Path(job["folder"])
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is at work in {folder}", file=sys.stderr)
            return BUSY
        clock = _Clock(folder / "clock.json")
        try:
            return _record(job, folder, clock)
        finally:
            clock.stop()


def _record(job: dict[str, Any], folder: Path, clock: _Clock) -> int:
    import torch

    from zerogate.bench import table as definitions
    from zerogate.bench import torch_pruning
    from zerogate.bench.kinds import Task, carry_out
    from zerogate.bench.records import FORMAT, Records
    from zerogate.training import provenance
    from zerogate.training.interruption import StoppedError

    torch.set_num_threads(job["threads"])
    figures = {row: Records(job["records"]).find(job["table"]).by_digest()[of]["figures"]
               for row, of in job["figures"].items()}  # fmt: skip

    def filled(text: Any) -> Any:
        return definitions.filled(text, job["folders"], figures)

    packages = ("pytorch-lightning", "torch-pruning") if job["kind"] == "torch_pruning" else ("pytorch-lightning",)
    # Now, since the source may change while the run goes on.
    origin = provenance.origin(*packages, folders=[torch_pruning.FOLDER])
    task = Task(
        job["kind"], job["seed"], tuple(map(filled, job["overrides"])),
        {key: filled(value) for key, value in job["options"].items()}, tuple(job["extra"]), folder, job["total_epochs"],
    )  # fmt: skip
    try:
        done = carry_out(task)
    except StoppedError as stop:
        return 128 + stop.signum
    records = Records(job["records"])
    if job["digest"] in records.find(job["table"]).by_digest():
        return 0  # it was done again for its checkpoint; what is recorded stays
    place = {key: job[key] for key in
             ("table", "row", "label", "kind", "seed", "budget", "setting", "recipe", "digest", "command")}  # fmt: skip
    records.add(
        place | origin
        | {
            "format": FORMAT,
            "overrides": [*job["overrides"], *(f"{key}: {value}" for key, value in job["options"].items())],
            "config": done.config,
            "figures": done.figures | {"threads": job["threads"]},
            "curve": done.curve,
            "seconds": clock.seconds(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )  # fmt: skip
    return 0


def run(arguments: list[str]) -> int:
    """The process: errors of ours are one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us, who says so by SIGTERM
    try:
        return main(Path(arguments[0]))
    except (ZerogateError, OSError) as error:
        print(f"zerogate: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
