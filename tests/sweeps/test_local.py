"""Engines for one machine: what they carry out, in which order, and what becomes of what fails or is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweep_tasks import Counting
from zerogate.errors import ZerogateError
from zerogate.sweeps.engine import Ended, Engine, Report, Task
from zerogate.sweeps.local import Processes, ThisProcess


def ended(reports: Iterator[Report]) -> dict[str, Ended]:
    return {each.task.name: each for report in reports for each in report.ended}


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_after_what_it_needs(tmp_path: Path, workers: int) -> None:
    a, b = Counting("a", tmp_path / "a"), Counting("b", tmp_path / "b")
    c, d = Counting("c", tmp_path / "c", needs=("a", "other")), Counting("d", tmp_path / "d", needs=("c", "b"))
    environment = dict(os.environ)
    reports = list(Processes(workers, threads=2).run([a, b, c, d]))
    done = [each for report in reports for each in report.ended]
    assert {each.how for each in done} == {"done"} and all(task.is_done() for task in (a, b, c, d))
    order = [each.task.name for each in done]
    assert sorted(order) == ["a", "b", "c", "d"] and order.index("a") < order.index("c") and order[-1] == "d"
    assert max(len(report.running) for report in reports) <= workers
    first, last = reports[0], reports[-1]
    assert (len(first.running), first.waiting, len(last.running), last.waiting) == (workers, 4 - workers, 0, 0)
    assert (last.uncounted, last.seconds_left) == (0, 0.0)
    assert {(task.folder / "threads").read_text() for task in (a, b, c, d)} == {"2"}
    assert dict(os.environ) == environment


def test_what_fails_stops_nothing_but_what_needs_it(tmp_path: Path) -> None:
    faults = {"refuses": "it is not possible", "breaks": "KeyError: 'gone'", "is killed": "ended with code -9"}
    tasks: list[Task] = [Counting(fault, tmp_path / fault, fault=fault) for fault in faults]
    tasks += [
        Counting("next", tmp_path / "next", needs=("breaks",)),
        Counting("last", tmp_path / "last", needs=("next",)),
    ]
    tasks.append(Counting("good", tmp_path / "good"))
    found = ended(Processes(2).run(tasks))
    assert {name: each.reason for name, each in found.items() if each.how == "failed"} == faults
    assert [name for name, each in found.items() if each.killed] == ["is killed"]
    assert found["next"].how == found["last"].how == "left out" and found["next"].reason == "needs breaks"
    assert found["good"].how == "done" and not (tmp_path / "next").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_what_runs_and_it_goes_on_later(tmp_path: Path, signum: int) -> None:
    tasks = [Counting("a", tmp_path / "a", fault="waits"), Counting("b", tmp_path / "b")]
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    engine, sent, stopping = Processes(1), False, 0
    for report in engine.run(tasks):
        while not sent and tasks[0].epochs_done() < 2:
            pass
        if not sent:
            os.kill(os.getpid(), signum)
            sent = True
        stopping += report.stopping
        assert not report.ended
    assert (engine.signum, stopping, tasks[0].epochs_done()) == (signum, 1, 2) and not tasks[1].folder.exists()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert {each.how for each in ended(Processes(2).run(tasks)).values()} == {"done"}
    assert (tasks[0].folder / "metrics.csv").read_text() == "epoch\n0\n1\n2\n"


def test_closing_the_reports_stops_what_runs(tmp_path: Path) -> None:
    task = Counting("a", tmp_path / "a", fault="waits")
    with closing(Processes(1).run([task])) as reports:
        next(reports)
        while task.epochs_done() < 2:
            pass
    assert task.epochs_done() == 2 and not multiprocessing.active_children()


def test_tasks_of_this_process_come_one_after_the_other(tmp_path: Path) -> None:
    tasks = [Counting(name, tmp_path / name) for name in "abc"]
    reports = list(ThisProcess().run(tasks))
    assert [[each.task.name for each in report.ended] for report in reports] == [["a"], ["b"], ["c"]]
    assert [report.waiting for report in reports] == [2, 1, 0] and reports[-1].seconds_left == 0
    first, second = (report.ended[0].seconds for report in reports[:2])
    assert reports[0].seconds_left == pytest.approx(2 * first)
    assert reports[1].seconds_left == pytest.approx((first + second) / 2)  # the median of two
    assert {(tmp_path / name / "threads").read_text() for name in "abc"} == {"1"}  # as many as this process has


def test_what_a_task_of_this_process_raises_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZerogateError, match="not possible"):
        list(ThisProcess().run([Counting("a", tmp_path / "a", fault="refuses"), Counting("b", tmp_path / "b")]))
    assert not (tmp_path / "b").exists()
    write = Counting._write

    def stopping(task: Counting, epoch: int) -> None:
        write(task, epoch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Counting, "_write", stopping)
    engine: Engine = ThisProcess()
    assert list(engine.run([Counting("c", tmp_path / "c"), Counting("d", tmp_path / "d")])) == []
    assert engine.signum == signal.SIGTERM and not (tmp_path / "d").exists()


def test_a_task_that_is_taken_is_done_when_its_process_has_left_it(tmp_path: Path, monkeypatch: Any) -> None:
    looks = iter([True, True, False])
    task = Counting("a", tmp_path / "a")
    monkeypatch.setattr(Counting, "is_taken", lambda self: next(looks))
    engine = Processes(1)
    engine._taken.append(task)
    assert [each.how for report in engine.run([]) for each in report.ended] == ["done"]
