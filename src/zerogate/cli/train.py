"""`zerogate train`: train a run."""

from __future__ import annotations

from zerogate.cli.command import Command
from zerogate.cli.help import keys_help
from zerogate.cli.output import print_scores

EXAMPLES = """\
Examples
  zerogate train experiment=digits
  zerogate train experiment=googlenet_l0 data.path=DIR objective.weight=0.5
  zerogate train experiment=googlenet_l0 init_from=RUN gate.droprate_init=0.05 objective.weight=20
  zerogate train experiment=resnet20_cs gate.initial_value=-0.1
  zerogate train model._target_=package.module.Class data=folder data.path=DIR
  zerogate train resume=RUN                   go on with a stopped run, exactly
"""


def run(overrides: list[str]) -> int:
    """Train by the configuration that these overrides make, or go on with a run."""
    from zerogate.training.config.compose import compose

    config = compose(overrides)
    from zerogate.training.train import train  # only now: it loads Lightning

    print_scores(train(config))
    return 0


COMMAND = Command(
    "train",
    "train [KEY=VALUE ...]              train; `zerogate train --help` lists groups, keys and experiments",
    run,
    lambda: keys_help("train", EXAMPLES),
)
