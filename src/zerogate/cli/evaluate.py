"""`zerogate eval`: test the network of a run."""

from __future__ import annotations

from zerogate.cli.command import Command
from zerogate.cli.output import print_scores
from zerogate.cli.run_arguments import run_arguments


def run(arguments: list[str]) -> int:
    """Print accuracy and costs of a run's deployed network."""
    from zerogate.training.evaluate import evaluate_run

    print_scores(evaluate_run(*run_arguments("eval", arguments)))
    return 0


COMMAND = Command(
    "eval",
    "eval RUN [which=best|last] [...]   validation and test accuracy of a run's deployed network",
    run,
)
