"""Comparisons: searches of several kinds, densities and seeds, as many at once as there are cores, and their table.

result = compare(compose(["experiment=digits_tickets", "compare.seeds=3"], "compare"))
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from zerogate.errors import ConfigError, ZerogateError
from zerogate.files import write
from zerogate.modules.run import usable_cores
from zerogate.report import figures as plots
from zerogate.tickets.time import Time
from zerogate.training import provenance
from zerogate.training.config import compose as settings
from zerogate.training.config import resume
from zerogate.training.config.checks import time_of
from zerogate.training.interruption import StoppedError
from zerogate.training.run_folder import Run, default_folder, write_csv, write_json
from zerogate.training.ticket_search import search

COLUMNS = ("kind", "density", "n", "test_accuracy", "test_accuracy_std", "val_accuracy", "val_accuracy_std",
           "remaining", "params", "epochs")  # fmt: skip


@dataclass(frozen=True)
class _Search:
    """One search of a comparison: its kind, the density asked for (None: as it is), its seed, and its overrides."""

    kind: str
    density: float | None
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}_{1.0 if self.density is None else self.density:g}_{self.seed}"


class _Folder(Run):
    """The folder of a comparison: a search's in each KIND_DENSITY_SEED, and what they come to."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.own = {name: self.folder / name for name in ("table.md", "table.csv", "compare.json", "plot.svg")}

    def files(self) -> list[Path]:
        """Every file of the comparison and of its searches."""
        found = [path for path in self.own.values() if path.exists()]
        for path in sorted(self.folder.glob("*_*_*/config.yaml")):
            found += Run(path.parent).files()
        return super().files() + found


def compare(config: DictConfig) -> dict[str, Any]:
    """Carry out what is missing of a comparison and write its table, from the beginning or where `config.resume` stopped.

    Args:
        config: from `compose(overrides, "compare")`.

    Returns:
        What compare.json holds, and `table`, the rows as text.

    Raises:
        ZerogateError: the configuration cannot be carried out (then nothing has been written), or a search failed.
        OSError: the folder cannot be written.
        StoppedError: SIGTERM or Ctrl-C; `resume` goes on, also with the searches that were under way.
    """
    if settings.command_of(config) != "compare":
        raise ConfigError('this configuration is of another command; compose it with compose(overrides, "compare")')
    settings.check(config)
    provenance.commit()  # remembered: the source may change while this goes on
    folder, config, given, resumed = _opened(config)
    searches = _searches(config, given)
    if resumed:
        folder.save_config(config)
    else:
        folder.begin(config)
    missing = [one for one in searches if not Run(folder.folder / one.name).result.is_file()]
    print(f"comparison {folder}: {len(searches)} searches, {len(searches) - len(missing)} of them finished", flush=True)
    workers = min(config.compare.workers or usable_cores(), max(len(missing), 1))
    shown = config.trainer.progress != "none"
    try:
        for line in _carry_out(folder, missing, workers):
            if shown:
                print(line, flush=True)
    except StoppedError as stop:
        raise StoppedError(stop.signum, folder) from stop
    return _summarise(folder, config, searches)


def _opened(config: DictConfig) -> tuple[_Folder, DictConfig, list[str], bool]:
    """The folder, the configuration, the overrides that its searches share, and whether the comparison goes on."""
    resume.check_resume(config)
    if not config.resume:
        folder = _Folder(config.output or default_folder(config.name))
        folder.check_free(config.overwrite)
        return folder, config, list(config.overrides), False
    folder = _Folder(Run.of(config.resume).folder)
    stored = settings.load(folder.config)
    command = settings.command_of(stored)
    if command != "compare":
        raise ConfigError(f"{folder} is of zerogate {command}; go on with zerogate {command} resume={folder}")
    return folder, resume.resumed(config, folder.folder, stored), [*stored.overrides, *config.overrides], True


def _searches(config: DictConfig, given: Sequence[str]) -> list[_Search]:
    """All searches, so ordered that a comparison that is stopped early has something of every kind.

    Raises:
        ConfigError: one of them could not be composed.
    """
    wanted = config.compare
    shared = [text for text in given if not _key(text).startswith("compare.") and _key(text) not in _SET]
    for text in given:
        if _key(text) == "ticket":
            raise ConfigError(f"{text} is for one search; give compare.kinds=[{text.partition('=')[2]}]")
    kinds: dict[str, list[str]] = {}
    for kind in dict.fromkeys(wanted.kinds):
        own = [text for text in shared if _key(text) != "search.rounds"]
        if settings.compose([*own, f"ticket={kind}"], "tickets").search.rounds == 0:  # one stage, as long as is fair
            kinds[kind] = [*own, f"ticket={kind}", f"search.final_length={_length(config)}"]
        else:
            kinds[kind] = [*shared, f"ticket={kind}"]
    found: dict[str, _Search] = {}
    for seed in range(config.seed, config.seed + wanted.seeds):
        for density in dict.fromkeys(wanted.densities):
            for kind, overrides in kinds.items():
                share = None if kind == "dense" else density
                one = _Search(kind, share, seed, (*overrides, f"seed={seed}", *_stated(share)))
                found.setdefault(one.name, one)
    return list(found.values())


_SET = ("output", "resume", "overwrite", "seed", "trainer.progress")
"""Keys that a comparison gives each of its searches itself."""


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _stated(density: float | None) -> list[str]:
    return [] if density is None else [f"search.density={density}"]


def _length(config: DictConfig) -> Time:
    """How long kinds of one stage train."""
    wanted = config.search
    each = time_of(wanted.length or config.trainer.max_epochs)
    last = each if wanted.final_length is None else time_of(wanted.final_length)
    rounds = wanted.rounds if config.compare.equal == "search" else 0
    return Time(rounds * each.epochs + last.epochs, rounds * each.iterations + last.iterations)


# carrying out


def _carry_out(folder: Run, missing: Sequence[_Search], workers: int) -> Iterator[str]:
    """Runs the searches; a line for each that is finished."""
    seconds, epochs = 0.0, 0
    finished = in_turn(folder, missing) if workers == 1 else at_once(folder, missing, workers)
    for number, (one, took, result) in enumerate(finished, start=1):
        seconds, epochs = seconds + took, epochs + result["epochs"]
        # Searches under way count as not begun: the estimate errs on the long side, by half a search on average.
        left = (len(missing) - number) * (epochs / number) * (seconds / epochs) / workers
        yield (
            f"{number}/{len(missing)}  {one.name}  test {result['test_accuracy']:.2%} with {result['remaining']:.1%} "
            f"remaining  {took:.0f} s  about {int(left) // 60}:{int(left) % 60:02d} left"
        )


_Finished = Iterator[tuple[_Search, float, dict[str, Any]]]


def in_turn(folder: Run, searches: Sequence[_Search]) -> _Finished:
    """(search, seconds, result) of each, in this process."""
    for one in searches:
        yield (one, *_run(str(folder.folder / one.name), one.overrides))


def at_once(folder: Run, searches: Sequence[_Search], workers: int) -> _Finished:
    """The same from so many processes of one thread each, in the order in which they finish.

    Raises:
        StoppedError: this process was asked to stop; so were the others, and they have saved where they are.
        ZerogateError: a search failed, or a process was killed.
    """
    asked: list[int] = []
    previous = {}
    waiting: dict[Any, _Search] = {}
    others = set(multiprocessing.active_children())
    if threading.current_thread() is threading.main_thread():
        previous = {
            s: signal.signal(s, lambda signum, _: asked.append(signum)) for s in (signal.SIGTERM, signal.SIGINT)
        }
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        waiting = {pool.submit(_run, str(folder.folder / one.name), one.overrides): one for one in searches}
        while waiting and not asked:
            done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                yield (waiting.pop(future), *future.result())
    except BrokenProcessPool as error:
        if not asked:
            raise ZerogateError(
                f"a process was killed, perhaps for want of memory; go on with fewer: zerogate compare resume={folder} "
                "compare.workers=1"
            ) from error
    finally:
        if waiting:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # as SIGTERM: a search under way saves where it is
        pool.shutdown(cancel_futures=True)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if asked:
        raise StoppedError(asked[0], folder)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and passes it on
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)  # killed, it could not say so; what is on disk is whole


def _run(output: str, overrides: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Seconds and result of a search, begun or gone on with, whose own lines nobody sees."""
    begun = time.perf_counter()
    resume = [f"resume={output}"] if Run(output).config.is_file() else []
    given = [*overrides, "trainer.progress=none", f"output={output}", *resume]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            result = search(settings.compose(given, "tickets"))
        except ZerogateError as error:
            raise ZerogateError(f"{Path(output).name}: {error}") from error
    return time.perf_counter() - begun, result


# what they come to


def _summarise(folder: _Folder, config: DictConfig, searches: Sequence[_Search]) -> dict[str, Any]:
    found: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    each: dict[str, dict[str, Any]] = {}
    for one in sorted(searches, key=lambda one: -(1.0 if one.density is None else one.density)):
        result = json.loads(Run(folder.folder / one.name).result.read_text())
        found.setdefault((one.kind, one.density), []).append(result)
        of_run = ("test_accuracy", "val_accuracy", "remaining", "params", "macs", "epochs", "history")
        each[one.name] = {key: result[key] for key in of_run}
    rows = [_row(kind, density, results) for (kind, density), results in found.items()]
    table = _table(rows)
    write(folder.own["table.md"], (table + "\n").encode())
    write_csv(folder.own["table.csv"], COLUMNS, rows)
    write(folder.own["plot.svg"], plots.svg(plots.accuracy_against_remaining(rows)).encode())
    summary = {"name": config.name, "rows": rows, "searches": each, **provenance.provenance_of(config)}
    write_json(folder.own["compare.json"], summary)
    return summary | {"table": table, "folder": str(folder)}


def _row(kind: str, density: float | None, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind, "density": density, "n": len(results)}
    for key in ("test_accuracy", "val_accuracy"):
        values = [result[key] for result in results]
        row[key] = statistics.mean(values)
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return row | {key: statistics.mean(result[key] for result in results) for key in ("remaining", "params", "epochs")}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown; accuracies are means ± standard deviations over the seeds."""
    head = ("kind", "density", "test accuracy %", "remaining %", "parameters", "epochs", "n")
    lines = [head, tuple("---" for _ in head)]
    for row in rows:
        spread = "" if row["test_accuracy_std"] is None else f" ± {100 * row['test_accuracy_std']:.2f}"
        density = "" if row["density"] is None else f"{row['density']:g}"
        lines.append((
            row["kind"], density, f"{100 * row['test_accuracy']:.2f}{spread}", f"{100 * row['remaining']:.2f}",
            f"{row['params']:,.0f}", f"{row['epochs']:g}", str(row["n"]),
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
