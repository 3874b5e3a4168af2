"""`zerogate tickets`: search for a ticket, then train it."""

from __future__ import annotations

from zerogate.cli.command import Command
from zerogate.cli.help import keys_help
from zerogate.cli.output import print_scores

EXAMPLES = """\
Examples
  zerogate tickets experiment=digits_tickets search.density=0.2
  zerogate tickets experiment=digits_tickets ticket=imp search.density=0.2 search.rounds=3
  zerogate tickets experiment=resnet20_tickets gate.initial_value=-0.1 data.path=DIR
  zerogate tickets experiment=resnet20_tickets sparsify.unit=channel search.density=0.5
  zerogate tickets resume=OUT                 go on with a stopped search, exactly
"""


def run(overrides: list[str]) -> int:
    """Search by the configuration that these overrides make, or go on with a search."""
    from zerogate.training.config.compose import compose

    config = compose(overrides, "tickets")
    from zerogate.training.ticket_search import search  # only now: it loads Lightning

    result = search(config)
    for stage in result["stages"]:
        print(
            f"{stage['stage']:8} {stage['remaining']:7.2%} remain  validation accuracy {stage['val_accuracy']:.2%}, "
            f"test accuracy {stage['test_accuracy']:.2%}"
        )
    print_scores(result)
    return 0


COMMAND = Command(
    "tickets",
    "tickets [KEY=VALUE ...]            search for a ticket in rounds, then train it; has a --help of its own",
    run,
    lambda: keys_help("tickets", EXAMPLES),
)
