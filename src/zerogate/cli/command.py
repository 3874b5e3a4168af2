"""What a command of zerogate is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command: `zerogate NAME ARGUMENTS`.

    `run` imports what it needs when it is called: Lightning takes seconds to load, and a slip should not cost them.
    """

    name: str
    usage: str
    """Its line in `zerogate --help`."""
    run: Callable[[list[str]], int]
    """Carries it out with the arguments after its name and returns the exit code."""
    help: Callable[[], str] | None = None
    """The text of `zerogate NAME --help`; None for that of `zerogate --help`."""
    needs_arguments: bool = False
    """Whether its help is shown where it is given none."""
