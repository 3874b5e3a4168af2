"""`zerogate bench TABLE [KEY=VALUE ...]`: what the words mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zerogate.bench import table as tables
from zerogate.bench.table import Table
from zerogate.checks import is_share, is_whole
from zerogate.errors import ConfigError

HELP = """\
zerogate bench TABLE [KEY=VALUE ...]   run what a table lacks, then write it as Markdown, CSV, JSON and a plot
zerogate bench render [KEY=VALUE ...]  write docs/results.md, docs/results/ and the README's results from the records

Tables
  {tables}

Keys
  data.path=DIR      where the table's data are; data.cache_dir=DIR and trainer.accelerator=cpu|gpu are passed on, too
  seeds=N            runs of each row, with seeds 0 to N-1; default: the table's own number
  budget=SHARE       a factor for every number of epochs, the same in all rows; 1 is the table as it is meant
  epochs=N           where a table trains longer on a GPU than on a CPU: this many
  limit=N            of each split of the data, so many images, the same in all rows
  precision=NAME     of training, {precisions}, the same in all rows; default: what the table says
  only=PATTERN       rows by their ids, several patterns between commas; rows that these start from are run as well
  workers=N          runs at once; default: one for each core, 8 at most on a GPU
  render=true        run nothing
  results=DIR        where records are kept, in DIR/records/TABLE; default benchmarks/results
  output=DIR         for runs and the rendered table; default outputs/bench
  docs=DIR           of render; default docs, with README.md beside it

Every finished run is a file of its own and is never run again, on whatever machine and day it was made. Stopped by Ctrl-C
or SIGTERM, the same command goes on where it stopped.
"""

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true")


def help_text() -> str:
    """What `zerogate bench --help` prints."""
    shown = "\n  ".join(f"{name:10} {tables.load(name).title}" for name in tables.names())
    return HELP.replace("{tables}", shown).replace("{precisions}", "|".join(PRECISIONS))


@dataclass
class Options:
    """The keys, with their defaults."""

    seeds: int | None = None
    budget: float = 1.0
    epochs: int | None = None
    limit: int | None = None
    precision: str | None = None
    only: str = "*"
    workers: int | None = None
    render: bool = False
    results: Path = Path("benchmarks/results")
    output: Path = Path("outputs/bench")
    docs: Path = Path("docs")
    extra: tuple[str, ...] = ()


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and is_whole(int(text)) else None


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if is_share(value) else None


def _text(text: str) -> str | None:
    return text or None


def _folder(text: str) -> Path | None:
    return Path(text) if text else None


_PASSED = ("data.path", "data.cache_dir", "trainer.accelerator")
"""Keys that every run gets as they are chosen."""
_TAKES: Mapping[str, tuple[Callable[[str], object], str]] = {
    **dict.fromkeys(("seeds", "epochs", "limit", "workers"), (_whole, "a whole number of at least 1")),
    "budget": (_share, "a number above 0 and up to 1"),
    "precision": (lambda text: text if text in PRECISIONS else None, f"one of {', '.join(PRECISIONS)}"),
    "only": (_text, "a pattern of row ids"),
    "render": ({"true": True, "false": False}.get, "true or false"),
    **dict.fromkeys(("results", "output", "docs"), (_folder, "a folder")),
    **dict.fromkeys(_PASSED, (_text, "a value")),
}
"""For each key, how its text is read (None: the text means no value), and what was expected."""


def options(arguments: Sequence[str]) -> Options:
    """The options that `KEY=VALUE` arguments give.

    Raises:
        ConfigError: a key that there is not, or a value that does not fit it.
    """
    chosen = Options()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"cannot read {argument!r}; write KEY=VALUE")
        if key not in _TAKES:
            raise ConfigError(f"bench has no key {key!r}; it has {', '.join(_TAKES)}")
        read, expected = _TAKES[key]
        value = read(text)
        if value is None:
            raise ConfigError(f"invalid {key}={text}: expected {expected}")
        if key in _PASSED:
            chosen.extra += (argument,)
        else:
            setattr(chosen, key, value)
    return chosen


def bench(arguments: Sequence[str]) -> int:
    """Runs `zerogate bench` with the words after it.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped it.

    Raises:
        ConfigError: a mistake in the arguments, or runs that failed.
    """
    if not arguments or "=" in arguments[0]:
        raise ConfigError(f"bench takes a table; choose one of {', '.join(tables.names())}, or render")
    chosen = options(arguments[1:])
    if arguments[0] == "render":
        from zerogate.bench.documents import write_documents

        for path in write_documents(chosen.results, chosen.docs):
            print(f"wrote {path}")
        return 0
    table = tables.load(arguments[0])
    if chosen.render or table.source is not None:
        from zerogate.bench.documents import check_results

        check_results(chosen.results)
        if not chosen.render and table.command:
            print(f"{table.name} is only rendered here; its figures come from: {table.command}")
        return _render(table, chosen)
    return _run(table, chosen)


def _render(table: Table, chosen: Options) -> int:
    from zerogate.bench.documents import rendered, write_table

    shown, problems = rendered(table, chosen.results)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(shown.markdown())
    for path in write_table(shown, chosen.output / table.name):
        print(f"wrote {path}")
    return 0


def _run(table: Table, chosen: Options) -> int:
    import torch

    from zerogate.bench.jobs import jobs
    from zerogate.bench.records import Records
    from zerogate.bench.run import TableRun
    from zerogate.modules.run import usable_cores

    cuda = torch.cuda.is_available() and "trainer.accelerator=cpu" not in chosen.extra
    profile = "cuda" if cuda else "cpu"
    seeds = range(chosen.seeds or table.seeds[profile])
    asked = jobs(table, profile, seeds, chosen.budget, chosen.epochs, chosen.only, chosen.limit, chosen.precision)
    cores = usable_cores()
    workers = 1 if table.alone else chosen.workers or (min(cores, 8) if cuda else cores)
    threads = 1 if table.alone else max(1, cores // workers)
    run = TableRun(asked, Records(chosen.results / "records"), chosen.output, workers, threads, chosen.extra,
                   say=lambda line: print(line, flush=True))  # fmt: skip
    print(f"{table.title}: {len(asked)} runs, {len(asked) - len(run.tasks)} recorded, {workers} at once"
          + (f", budget {chosen.budget:g}" if chosen.budget != 1 else ""), flush=True)  # fmt: skip
    run.run()
    if run.signum is not None:
        print("stopped; the same command goes on")
        return 128 + run.signum
    _render(table, chosen)
    if run.failed:
        first = next(iter(run.failed.values()))
        raise ConfigError(f"{len(run.failed)} of {len(asked)} runs failed, such as {first}; mend it and give the same "
                          "command")  # fmt: skip
    return 0
