"""`zerogate compact`: write the network of a run without its closed parts."""

from __future__ import annotations

from zerogate.cli.command import Command
from zerogate.cli.output import print_report
from zerogate.cli.run_arguments import run_arguments


def run(arguments: list[str]) -> int:
    """Compact a run's network; print its report and what was written."""
    from zerogate.training.deploy import compact

    written = compact(*run_arguments("compact", arguments))
    print_report(written["report"])
    print(f"differs from the gated network by {written['compaction_error']:.1e} of the largest output (float64)")
    print(f"wrote {written['path']}: {written['file_bytes']:,} bytes; dense tensors take {written['dense_bytes']:,}")
    return 0


COMMAND = Command(
    "compact",
    "compact RUN [which=best|last]      write a gated run's network without its closed parts",
    run,
)
