"""Hydra's and Python's messages, turned into what to write instead.

These sentences are other projects': a test that fails here after an upgrade says that `messages.py` must follow.
"""

from __future__ import annotations

import pytest

from zerogate.errors import ConfigError
from zerogate.training.config.compose import compose
from zerogate.training.config.keys import Command
from zerogate.training.config.messages import unexpected_argument


@pytest.mark.parametrize(
    ("overrides", "command", "message"),
    [
        (["model=nope"], "train", r"^unknown model 'nope'; choose one of convnet, googlenet, .*wrn28_10$"),
        (["model.widht=3"], "train", r"^no such key 'model.widht'; `zerogate train --help` lists them, \+model.widht="),
        (["serach.rounds=1"], "tickets", r"^no such key 'serach.rounds'; `zerogate tickets --help` lists them"),
        (["a b"], "train", r"^cannot read the override .*a b; write key=value$"),
        (["seed"], "train", r"write key=value$"),
        (["gate=null"], "train", r"gate=null"),
    ],
)
def test_messages_of_hydra(overrides: list[str], command: Command, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(overrides, command)


def test_messages_of_python() -> None:
    def schedule(*, gamma: float) -> float:
        return gamma

    with pytest.raises(TypeError) as unexpected:
        schedule(gamma=1.0, milestones=[1])  # type: ignore[call-arg]
    assert unexpected_argument(unexpected.value) == "milestones"
    with pytest.raises(TypeError) as missing:
        schedule()  # type: ignore[call-arg]
    assert unexpected_argument(missing.value) is None
