"""`zerogate compare`: tickets of several kinds, densities and seeds."""

from __future__ import annotations

from zerogate.cli.command import Command
from zerogate.cli.help import keys_help

EXAMPLES = """\
Examples
  zerogate compare experiment=digits_tickets
  zerogate compare experiment=digits_tickets compare.kinds=[cs,imp,dense] compare.densities=[0.2] compare.seeds=3
  zerogate compare resume=OUT                 go on; what is finished is not repeated
"""


def run(overrides: list[str]) -> int:
    """Carry out the comparison that these overrides make, or what is missing of one."""
    from zerogate.training.config.compose import compose

    config = compose(overrides, "compare")
    from zerogate.sweeps.compare import compare  # only now: it loads Lightning

    result = compare(config)
    print(result["table"])
    print(f"wrote {result['folder']}/table.md, table.csv, plot.svg and compare.json")
    return 0


COMMAND = Command(
    "compare",
    "compare [KEY=VALUE ...]            tickets of several kinds, densities and seeds in one table; so has this",
    run,
    lambda: keys_help("compare", EXAMPLES),
)
