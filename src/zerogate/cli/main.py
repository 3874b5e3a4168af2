"""The command `zerogate`: finds the command that is meant, and turns its errors into lines.

Whatever a user can mend is one line on stderr and exit code 2; ZEROGATE_DEBUG=1 shows the traceback as well.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from zerogate.cli import bench, compact, compare, evaluate, tickets, train
from zerogate.cli.command import Command
from zerogate.errors import ConfigError, ZerogateError, one_line
from zerogate.training.interruption import StoppedError

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND for module in (train, tickets, compare, evaluate, compact, bench)
}
"""The commands by name. To add one, write a file beside this one and enter it here."""

EXTRA_MODULES = ("datasets", "hydra", "matplotlib", "omegaconf", "pytorch_lightning", "rich", "safetensors", "sklearn",
                 "tensorboard", "torchmetrics")  # fmt: skip
"""Modules that the extra `train` brings, by the names under which they are imported. The metadata of an installed zerogate
have the names under which they are installed (scikit-learn, hydra-core), and a package that is missing has no metadata
that could say which is which. A test compares the two."""


def help_text() -> str:
    """The text of `zerogate --help`."""
    usages = "".join(f"  zerogate {command.usage}\n" for command in COMMANDS.values())
    return f"""\
zerogate: learn which parts of a network are exactly zero, then remove them

{usages}  zerogate --help | --version

A RUN is the output folder of `zerogate train` or of `zerogate tickets`, or a stage in it. eval and compact take values
of the run's configuration, such as data.path=DIR where the data have moved.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code.

    0: done. 2: a mistake of the user's or a failing disk. 130 or 143: stopped by Ctrl-C or SIGTERM; the run can go on.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except StoppedError as stop:
        print(f"stopped by {stop}; continue with: zerogate {arguments[0]} resume={stop.run}", flush=True)
        return 128 + stop.signum
    except ZerogateError as error:
        return _fail(error, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        told = f"{where}{error.strerror or error}; give a folder with space that can be written"
        return _fail(ConfigError(told), error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA_MODULES:
            raise
        return _fail(ConfigError(f"{error.name} is not installed; pip install 'zerogate[train]'"), error)
    except KeyboardInterrupt:
        print("zerogate: interrupted", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"zerogate {version('zerogate')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; choose one of {', '.join(COMMANDS)}, or --help")
    command = COMMANDS[name]
    if any(argument in ("-h", "--help") for argument in rest) or (command.needs_arguments and not rest):
        print(help_text() if command.help is None else command.help())
        return 0
    for argument in rest:
        if argument.startswith("-"):
            raise ConfigError(f"unknown option {argument!r}; values are given as KEY=VALUE, see zerogate {name} --help")
    return command.run(rest)


def _fail(told: ZerogateError, error: BaseException) -> int:
    """Prints what the user is told, on one line, and with ZEROGATE_DEBUG where it was raised; the exit status."""
    if os.environ.get("ZEROGATE_DEBUG"):
        traceback.print_exception(error)
    print(f"zerogate: error: {one_line(told)}", file=sys.stderr)
    return 2
