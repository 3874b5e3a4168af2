"""`zerogate bench`: tables of results."""

from __future__ import annotations

from zerogate.cli.command import Command


def run(arguments: list[str]) -> int:
    """Run what a table lacks, then render it."""
    from zerogate.bench.command import bench

    return bench(arguments)


def help_text() -> str:
    """The command's own help, read from its tables."""
    from zerogate.bench.command import help_text

    return help_text().removesuffix("\n")


COMMAND = Command(
    "bench",
    "bench TABLE [KEY=VALUE ...]        tables of results: run what one lacks, then render; has a --help of its own",
    run,
    help_text,
    needs_arguments=True,
)
