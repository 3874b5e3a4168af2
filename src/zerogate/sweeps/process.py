"""A task's process: how it is made, what it does, and how it says why it failed.

Processes are copies of a server that has imported what tasks need, so that one is there within a fifth of a second. Where
there is a GPU each is a fresh interpreter instead: CUDA must not have been touched before a process is copied.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess

import torch

from zerogate.errors import ZerogateError, class_and_line, one_line
from zerogate.sweeps.engine import TakenError, Task
from zerogate.training.interruption import StoppedError

FAILED, TAKEN = 2, 75
"""Exit codes of a task's process: it says why in a line; another one is at it. 128 plus a signal's number: stopped by it."""


@dataclass
class Running:
    """A process and its task."""

    task: Task
    process: SpawnProcess | ForkServerProcess
    told: Connection  # gives a line where the process failed and could say why
    begun: float
    epochs_before: int
    asked_to_stop: bool = False

    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.begun

    def stop(self) -> None:
        """Asks once: a second SIGTERM would end a run that is about to save."""
        if not self.asked_to_stop:
            self.asked_to_stop = True
            self.process.terminate()

    def reason(self) -> str:
        """Why it failed."""
        try:
            return str(self.told.recv())
        except (EOFError, OSError):  # it ended without a word
            return f"ended with code {self.process.exitcode}"


def start(task: Task, threads: int, preload: Sequence[str]) -> Running:
    """A process of so many threads that carries out a task.

    Args:
        preload: modules that tasks need, imported once for all processes.
    """
    context = _context(tuple(preload))
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, threads, tell), name=task.name)
    before = task.epochs_done()
    with _environment(threads):
        process.start()
    tell.close()
    return Running(task, process, told, time.monotonic(), before)


@functools.cache
def _context(preload: tuple[str, ...]) -> SpawnContext | ForkServerContext:
    """How processes are made."""
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The environment in which a process, or the server of processes, starts: OpenMP reads it when torch is loaded."""
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _work(task: Task, threads: int, tell: Connection) -> None:
    """What a process does; its exit code says how it ended, `tell` why it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us, who says so by SIGTERM
    if hasattr(os, "setsid"):
        os.setsid()  # nor does a terminal that is closed end us
    if not task.outlives:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if task.log is not None:
        task.log.parent.mkdir(parents=True, exist_ok=True)
    out = os.open(task.log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(out, 1)
    if task.log is not None:
        os.dup2(out, 2)
    torch.set_num_threads(threads)
    try:
        task.work()
    except StoppedError as stop:
        sys.exit(128 + stop.signum)
    except TakenError:
        sys.exit(TAKEN)
    except (ZerogateError, OSError) as error:
        reason = one_line(error)
        if task.log is not None:
            print(f"zerogate: error: {reason}", file=sys.stderr)
        tell.send(reason)
        sys.exit(FAILED)
    except Exception as error:
        tell.send(class_and_line(error))
        raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed, it could not say so; what is on disk is whole
