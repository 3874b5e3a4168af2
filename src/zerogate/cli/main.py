"""The command: `zerogate train`, `tickets`, `compare`, `eval` and `compact`.

Whatever a user can mend is one line on stderr and exit code 2; ZEROGATE_DEBUG=1 shows the traceback as well.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from zerogate.errors import ConfigError, ZerogateError

CONFIGS = Path(__file__).parents[1] / "training" / "configs"

HELP = """\
zerogate: learn which parts of a network are exactly zero, then remove them

  zerogate train [KEY=VALUE ...]              train; `zerogate train --help` lists groups, keys and experiments
  zerogate tickets [KEY=VALUE ...]            search for a ticket in rounds, then train it; has a --help of its own
  zerogate compare [KEY=VALUE ...]            tickets of several kinds, densities and seeds in one table; so has this
  zerogate eval RUN [which=best|last] [...]   validation and test accuracy of a run's deployed network
  zerogate compact RUN [which=best|last]      write a gated run's network without its closed parts
  zerogate bench TABLE [KEY=VALUE ...]        tables of results: run what one lacks, then render; has a --help of its own
  zerogate --help | --version

A RUN is the output folder of `zerogate train` or of `zerogate tickets`, or a stage in it. eval and compact take values
of the run's configuration, such as data.path=DIR where the data have moved.
"""

EXAMPLES = {
    "train": """\
Examples
  zerogate train experiment=digits
  zerogate train experiment=googlenet_l0 data.path=DIR objective.weight=0.5
  zerogate train experiment=googlenet_l0 init_from=RUN gate.droprate_init=0.05 objective.weight=20
  zerogate train experiment=resnet20_cs gate.initial_value=-0.1
  zerogate train model._target_=package.module.Class data=folder data.path=DIR
  zerogate train resume=RUN                   go on with a stopped run, exactly
""",
    "tickets": """\
Examples
  zerogate tickets experiment=digits_tickets search.density=0.2
  zerogate tickets experiment=digits_tickets ticket=imp search.density=0.2 search.rounds=3
  zerogate tickets experiment=resnet20_tickets gate.initial_value=-0.1 data.path=DIR
  zerogate tickets experiment=resnet20_tickets sparsify.unit=channel search.density=0.5
  zerogate tickets resume=OUT                 go on with a stopped search, exactly
""",
    "compare": """\
Examples
  zerogate compare experiment=digits_tickets
  zerogate compare experiment=digits_tickets compare.kinds=[cs,imp,dense] compare.densities=[0.2] compare.seeds=3
  zerogate compare resume=OUT                 go on; what is finished is not repeated
""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code.

    0: done. 2: a mistake of the user's or a failing disk. 130 or 143: stopped by Ctrl-C or SIGTERM; the run can go on.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except ZerogateError as error:
        return _fail(str(error), error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}; give a folder with space that can be written", error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRAS:
            raise
        return _fail(f"{error.name} is not installed; pip install 'zerogate[train]'", error)
    except KeyboardInterrupt:
        print("zerogate: interrupted", file=sys.stderr)
        return 130


_EXTRAS = ("datasets", "hydra", "matplotlib", "omegaconf", "pytorch_lightning", "rich", "safetensors", "sklearn",
           "tensorboard", "torchmetrics")  # fmt: skip


def _fail(message: str, error: BaseException) -> int:
    if os.environ.get("ZEROGATE_DEBUG"):
        traceback.print_exception(error)
    print(f"zerogate: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"zerogate {version('zerogate')}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "tickets": _tickets,
        "compare": _compare,
        "eval": _eval,
        "compact": _compact,
        "bench": _bench,
    }
    command, rest = arguments[0], arguments[1:]
    if command not in commands:
        raise ConfigError(f"unknown command {command!r}; choose one of {', '.join(commands)}, or --help")
    if command == "bench" and (not rest or any(argument in ("-h", "--help") for argument in rest)):
        from zerogate.bench.command import help_text

        print(help_text(), end="")
        return 0
    if any(argument in ("-h", "--help") for argument in rest):
        print("\n".join(_keys_help(command)) if command in EXAMPLES else HELP)
        return 0
    for argument in rest:
        if argument.startswith("-"):
            raise ConfigError(
                f"unknown option {argument!r}; values are given as KEY=VALUE, see zerogate {command} --help"
            )
    return commands[command](rest)


def _train(overrides: list[str]) -> int:
    from zerogate.training.config.compose import compose

    config = compose(overrides)
    from zerogate.training.callbacks.files import (
        StoppedError,  # only now: Lightning takes seconds to load, a slip should not
    )
    from zerogate.training.train import train

    try:
        result = train(config)
    except StoppedError as stop:
        print(f"stopped by {stop}; continue with: zerogate train resume={stop.run}", flush=True)
        return 128 + stop.signum
    _print_scores(result)
    return 0


def _tickets(overrides: list[str]) -> int:
    from zerogate.training.config.compose import compose

    config = compose(overrides, "tickets")
    from zerogate.training.callbacks.files import StoppedError
    from zerogate.training.ticket_search import search

    try:
        result = search(config)
    except StoppedError as stop:
        print(f"stopped by {stop}; continue with: zerogate tickets resume={stop.run}", flush=True)
        return 128 + stop.signum
    for stage in result["stages"]:
        print(
            f"{stage['stage']:8} {stage['remaining']:7.2%} remain  validation accuracy {stage['val_accuracy']:.2%}, "
            f"test accuracy {stage['test_accuracy']:.2%}"
        )
    _print_scores(result)
    return 0


def _compare(overrides: list[str]) -> int:
    from zerogate.training.config.compose import compose

    config = compose(overrides, "compare")
    from zerogate.sweeps.compare import compare
    from zerogate.training.callbacks.files import StoppedError

    try:
        result = compare(config)
    except StoppedError as stop:
        print(f"stopped by {stop}; continue with: zerogate compare resume={stop.run}", flush=True)
        return 128 + stop.signum
    print(result["table"])
    print(f"wrote {result['folder']}/table.md, table.csv, plot.svg and compare.json")
    return 0


def _split(command: str, arguments: list[str]) -> tuple[str, str, list[str]]:
    """(run, which, overrides) of `zerogate eval` and `zerogate compact`."""
    runs = [argument for argument in arguments if "=" not in argument]
    if len(runs) != 1:
        raise ConfigError(
            f"{command} takes one run folder, got {len(runs)}; write zerogate {command} RUN [KEY=VALUE ...]"
        )
    which = "last"
    overrides = []
    for argument in arguments:
        if argument.startswith("which="):
            which = argument.removeprefix("which=")
        elif argument != runs[0]:
            overrides.append(argument)
    return runs[0], which, overrides


def _eval(arguments: list[str]) -> int:
    from zerogate.training.train import evaluate_run

    run, which, overrides = _split("eval", arguments)
    _print_scores(evaluate_run(run, which, overrides))
    return 0


def _compact(arguments: list[str]) -> int:
    from zerogate.training.train import compact

    run, which, overrides = _split("compact", arguments)
    written = compact(run, which, overrides)
    _print_report(written["report"])
    print(f"differs from the gated network by {written['compaction_error']:.1e} of the largest output (float64)")
    print(f"wrote {written['path']}: {written['file_bytes']:,} bytes; dense tensors take {written['dense_bytes']:,}")
    return 0


def _bench(arguments: list[str]) -> int:
    from zerogate.bench.command import bench

    return bench(arguments)


def _print_report(report: Any) -> None:
    """As tables in a terminal, where rich is installed; as text into a pipe, where nothing may be folded."""
    if sys.stdout.isatty() and hasattr(report, "__rich__"):
        try:
            from rich.console import Console

            return Console().print(report)
        except ModuleNotFoundError:
            pass
    print(report)


def _print_scores(scores: dict[str, Any]) -> None:
    macs = "unknown" if scores["macs"] is None else f"{scores['macs']:,}"
    print(f"validation accuracy {scores['val_accuracy']:.2%}, test accuracy {scores['test_accuracy']:.2%}")
    print(f"parameters {scores['params']:,} ({scores['density_params']:.1%} of the dense network's), MACs {macs}")
    if "compaction_error" in scores:
        print(f"compacted: differs from the gated network by {scores['compaction_error']:.1e} of the largest output")


def _keys_help(command: str) -> Iterator[str]:
    """Groups with their options, keys with their defaults, examples; read from the files, without loading torch."""
    roots = [
        CONFIGS / f"{name}.yaml"
        for name in {"compare": ["compare", "tickets"], "tickets": ["tickets"]}.get(command, [])
    ]
    roots.append(CONFIGS / "config.yaml")
    defaults = dict(
        found for root in roots for found in re.findall(r"^  - (\w+): (\w+)", root.read_text(), re.MULTILINE)
    )
    yield f"zerogate {command} [KEY=VALUE ...]: Hydra overrides of the configuration below\n"
    yield "Groups (GROUP=OPTION)"
    groups = sorted(path for path in CONFIGS.iterdir() if path.name in defaults)
    for group in groups:
        options = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        yield f"  {group.name} (default {defaults[group.name]}): {options}"
    yield "\nKeys"
    for root in roots:
        yield from _keys(root)
    for group in groups:
        if group.name not in ("experiment", "ticket", "gate_scheduler"):  # the last has the keys of scheduler
            option = "multistep" if group.name == "scheduler" else defaults[group.name]
            yield f"\nKeys of {group.name}={option}"
            yield from _keys(group / f"{option}.yaml", f"{group.name}.")
    yield f"\n{EXAMPLES[command]}"


def _keys(path: Path, prefix: str = "") -> Iterator[str]:
    """The lines `key: value  # meaning` of a file, with the names of enclosing keys in front."""
    parents: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        match = re.match(r"( *)(\w+):\s*([^#]*?)\s*(#.*)?$", line)
        if match is None or match[2] == "defaults":
            continue
        indent = len(match[1])
        parents = [(depth, name) for depth, name in parents if depth < indent]
        if not match[3]:
            parents.append((indent, match[2]))
            continue
        key = f"{prefix}{''.join(f'{name}.' for _, name in parents)}{match[2]}={match[3]}"
        yield f"  {key:42} {(match[4] or '').removeprefix('#').strip()}".rstrip()
