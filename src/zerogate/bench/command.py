"""`zerogate bench TABLE [KEY=VALUE ...]`: what the words mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerogate.bench import table as definitions
from zerogate.errors import ConfigError
from zerogate.modules.run import usable_cores

HELP = """\
zerogate bench TABLE [KEY=VALUE ...]   run what a table lacks, then write it as Markdown, CSV, JSON and a plot
zerogate bench render [KEY=VALUE ...]  write docs/results.md, docs/results/ and the README's results from the records

Tables
  {tables}

Keys
  data.path=DIR      where the table's data lie; data.cache_dir=DIR and trainer.accelerator=cpu|gpu are passed on, too
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
    tables = "\n  ".join(f"{name:10} {definitions.load(name).title}" for name in definitions.names())
    return HELP.replace("{tables}", tables).replace("{precisions}", "|".join(PRECISIONS))


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


def _whole(key: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{key}={text} will not do; {key} takes a whole number of at least 1")
    return int(text)


def _share(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(f"{key}={text} will not do; {key} takes a number above 0 and up to 1")
    return value


def _precision(key: str, text: str) -> str:
    if text not in PRECISIONS:
        raise ConfigError(f"{key}={text} will not do; {key} takes one of {', '.join(PRECISIONS)}")
    return text


def _flag(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ConfigError(f"{key}={text} will not do; {key} takes true or false")
    return text == "true"


def _text(key: str, text: str) -> str:
    if not text:
        raise ConfigError(f"{key}= is empty; give a value, or leave it out")
    return text


_READ: Mapping[str, Callable[[str, str], Any]] = {
    "seeds": _whole, "budget": _share, "epochs": _whole, "limit": _whole, "precision": _precision, "only": _text,
    "workers": _whole, "render": _flag,
    "results": lambda key, text: Path(_text(key, text)), "output": lambda key, text: Path(_text(key, text)),
    "docs": lambda key, text: Path(_text(key, text)),
}  # fmt: skip
_PASSED = ("data.path", "data.cache_dir", "trainer.accelerator")


def options(arguments: Sequence[str]) -> Options:
    """The keys that are given.

    Raises:
        ConfigError: one that there is not, or a value that cannot be meant.
    """
    found = Options()
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"cannot read {argument!r}; write KEY=VALUE")
        if key in _PASSED:
            found.extra += (f"{key}={_text(key, text)}",)
        elif key in _READ:
            setattr(found, key, _READ[key](key, text))
        else:
            raise ConfigError(f"bench has no key {key!r}; it has {', '.join([*_READ, *_PASSED])}")
    return found


def bench(arguments: Sequence[str]) -> int:
    """The command without its first word; its exit code."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError(f"bench takes a table; choose one of {', '.join(definitions.names())}, or render")
    given = options(arguments[1:])
    if arguments[0] == "render":
        from zerogate.bench.documents import write_documents

        for path in write_documents(given.results, given.docs):
            print(f"wrote {path}")
        return 0
    table = definitions.load(arguments[0])
    if given.render or table.source is not None:
        if not given.render and table.command:
            print(f"{table.name} is only rendered here; its figures come from: {table.command}")
        return _render(table, given)
    return _run(table, given)


def _render(table: definitions.Table, given: Options) -> int:
    from zerogate.bench.documents import rendered, write_table

    shown, problems = rendered(table, given.results)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(shown.markdown())
    for path in write_table(shown, given.output / table.name):
        print(f"wrote {path}")
    return 0


def _run(table: definitions.Table, given: Options) -> int:
    import torch

    from zerogate.bench.records import Records
    from zerogate.sweeps.local import Queue

    cuda = torch.cuda.is_available() and "trainer.accelerator=cpu" not in given.extra
    profile = "cuda" if cuda else "cpu"
    seeds = range(given.seeds or table.seeds[profile])
    asked = definitions.jobs(table, profile, seeds, given.budget, given.epochs, given.only, given.limit,
                            given.precision)  # fmt: skip
    cores = usable_cores()
    workers = 1 if table.alone else given.workers or (min(cores, 8) if cuda else cores)
    threads = 1 if table.alone else max(1, cores // workers)
    queue = Queue(asked, Records(given.results / "records"), given.output, workers, threads, given.extra,
                  say=lambda line: print(line, flush=True))  # fmt: skip
    print(f"{table.title}: {len(asked)} runs, {len(asked) - len(queue.missing)} recorded, {workers} at once"
          + (f", budget {given.budget:g}" if given.budget != 1 else ""), flush=True)  # fmt: skip
    queue.run()
    if queue.signum is not None:
        print("stopped; the same command goes on")
        return 128 + queue.signum
    _render(table, given)
    if queue.failed:
        raise ConfigError(f"{len(queue.failed)} of {len(asked)} runs failed, such as {next(iter(queue.failed.values()))}; "
                          "mend it and give the same command")  # fmt: skip
    return 0
