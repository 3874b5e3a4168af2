"""Comparisons: searches of several kinds, densities and seeds, as many at once as there are cores, and their table.

result = compare(compose(["experiment=digits_tickets", "compare.seeds=3"], "compare"))
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zerogate.errors import ConfigError, ZerogateError
from zerogate.modules.run import usable_cores
from zerogate.sweeps.engine import Ended, Engine, Report, Task
from zerogate.sweeps.local import Processes, ThisProcess
from zerogate.sweeps.summary import ComparisonFolder, summarise
from zerogate.tickets.time import Time
from zerogate.training import provenance
from zerogate.training.config.checks import check, time_of
from zerogate.training.config.compose import compose, load
from zerogate.training.config.keys import command_of, key_of
from zerogate.training.config.resume import check_resume, resumed
from zerogate.training.interruption import StoppedError
from zerogate.training.run_folder import RunFolder, default_folder, read_result
from zerogate.training.ticket_search import search

OWN_KEYS = ("output", "resume", "overwrite", "seed", "trainer.progress")
"""Keys that a comparison gives each of its searches itself."""


@dataclass(frozen=True)
class Search(Task):
    """One search of a comparison.

    Attributes:
        ticket: the kind of ticket, as its records name it. density: what is asked for; None: the kind is trained as it is.
        overrides: of its configuration. of: the folder of the comparison.
        epochs: of all its stages.
    """

    ticket: str
    density: float | None
    seed: int
    overrides: tuple[str, ...]
    of: Path
    epochs: int

    @property
    def name(self) -> str:
        """KIND_DENSITY_SEED, which is the name of its folder."""
        return f"{self.ticket}_{1.0 if self.density is None else self.density:g}_{self.seed}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.of / self.name

    def is_done(self) -> bool:
        """Whether its result is there."""
        return RunFolder(self.folder).result.is_file()

    def work(self) -> None:
        """Begins it or goes on with it; nobody sees what it prints."""
        resume = [f"resume={self.folder}"] if RunFolder(self.folder).config.is_file() else []
        overrides = [*self.overrides, "trainer.progress=none", f"output={self.folder}", *resume]
        with redirect_stdout(io.StringIO()):
            try:
                search(compose(overrides, "tickets"))
            except ZerogateError as error:
                raise ZerogateError(f"{self.name}: {error}") from error


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
    if command_of(config) != "compare":
        raise ConfigError('this configuration is of another command; compose it with compose(overrides, "compare")')
    check(config)
    provenance.commit()  # remembered: the source may change while this goes on
    folder, config, overrides, goes_on = open_or_resume(config)
    searches = searches_of(config, overrides, folder.folder)
    if goes_on:
        folder.save_config(config)
    else:
        folder.begin(config)
    missing = [one for one in searches if not one.is_done()]
    print(f"comparison {folder}: {len(searches)} searches, {len(searches) - len(missing)} of them finished", flush=True)
    run_missing(folder, missing, config.compare.workers, show=config.trainer.progress != "none")
    return summarise(folder, config, [(one.name, one.ticket, one.density) for one in searches])


def open_or_resume(config: DictConfig) -> tuple[ComparisonFolder, DictConfig, list[str], bool]:
    """The folder, the configuration, the overrides that its searches share, and whether the comparison goes on."""
    check_resume(config)
    if not config.resume:
        folder = ComparisonFolder(config.output or default_folder(config.name))
        folder.check_free(config.overwrite)
        return folder, config, list(config.overrides), False
    folder = ComparisonFolder(RunFolder.of(config.resume).folder)
    stored = load(folder.config)
    command = command_of(stored)
    if command != "compare":
        raise ConfigError(f"{folder} is of zerogate {command}; go on with zerogate {command} resume={folder}")
    return folder, resumed(config, folder.folder, stored), [*stored.overrides, *config.overrides], True


# which searches


def searches_of(config: DictConfig, overrides: Sequence[str], folder: Path = Path()) -> list[Search]:
    """All searches, so ordered that a comparison that is stopped early has something of every kind.

    Args:
        overrides: what its searches share. folder: of the comparison.

    Raises:
        ConfigError: one of them could not be composed.
    """
    asked = config.compare
    shared = [text for text in overrides if not key_of(text).startswith("compare.") and key_of(text) not in OWN_KEYS]
    for text in overrides:
        if key_of(text) == "ticket":
            raise ConfigError(f"{text} is for one search; give compare.kinds=[{text.partition('=')[2]}]")
    kinds: dict[str, list[str]] = {}
    epochs: dict[str, int] = {}
    for ticket in dict.fromkeys(asked.kinds):
        own = [text for text in shared if key_of(text) != "search.rounds"]
        named = [text for text in own if key_of(text) != "search.kind"]  # which would give all kinds one name
        of_ticket = compose([*named, f"ticket={ticket}"], "tickets").search
        kind = of_ticket.kind or ticket
        if of_ticket.rounds == 0:  # one stage, as long as is fair
            length = _length(config, asked.equal == "search")
            kinds[kind] = [*own, f"ticket={ticket}", f"search.final_length={length}"]
        else:
            length = _length(config, with_rounds=True)
            kinds[kind] = [*shared, f"ticket={ticket}"]
        epochs[kind] = max(length.epochs, 1)
    searches: dict[str, Search] = {}
    for seed in range(config.seed, config.seed + asked.seeds):
        for density in dict.fromkeys(asked.densities):
            for kind, own in kinds.items():
                share = None if kind == "dense" else density
                stated = [] if share is None else [f"search.density={share}"]
                one = Search(kind, share, seed, (*own, f"seed={seed}", *stated), folder, epochs[kind])
                searches.setdefault(one.name, one)
    return list(searches.values())


def _length(config: DictConfig, with_rounds: bool) -> Time:
    """How long a ticket is trained, with or without the rounds of its search."""
    asked = config.search
    each = time_of(asked.length or config.trainer.max_epochs)
    last = each if asked.final_length is None else time_of(asked.final_length)
    rounds = asked.rounds if with_rounds else 0
    return Time(rounds * each.epochs + last.epochs, rounds * each.iterations + last.iterations)


# what is done about them


def run_missing(folder: RunFolder, missing: Sequence[Search], workers: int | None, show: bool) -> None:
    """Carries out searches, a line for each that is finished.

    Args:
        workers: processes of one thread each; None: one for each core. A single one is this process, with all threads.

    Raises:
        StoppedError: this process was asked to stop; what was under way has been saved.
        ZerogateError: a search failed, or a process was killed.
    """
    workers = min(workers or usable_cores(), max(len(missing), 1))
    engine: Engine = ThisProcess() if workers == 1 else Processes(workers)
    number = 0
    with closing(engine.run(missing)) as reports:
        for report in reports:
            for ended in report.ended:
                if ended.how != "done":
                    raise ZerogateError(_failure(ended, folder))
                number += 1
                if show:
                    print(f"{number}/{len(missing)}  {_line(ended, report)}", flush=True)
    if engine.signum is not None:
        raise StoppedError(engine.signum, folder)


def _failure(ended: Ended, folder: RunFolder) -> str:
    if ended.killed:
        return (
            f"a process was killed, perhaps for want of memory; go on with fewer: zerogate compare resume={folder} "
            "compare.workers=1"
        )
    name = f"{ended.task.name}: "
    return ended.reason if ended.reason.startswith(name) else name + ended.reason


def _line(ended: Ended, report: Report) -> str:
    result, seconds = read_result(RunFolder(ended.task.folder).result), int(report.seconds_left)
    return (
        f"{ended.task.name}  test {result['test_accuracy']:.2%} with {result['remaining']:.1%} remaining  "
        f"{ended.seconds:.0f} s  about {seconds // 60}:{seconds % 60:02d} left"
    )
