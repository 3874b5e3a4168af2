"""What may change when a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from zerogate.errors import ConfigError
from zerogate.training.config.compose import compose, leaves
from zerogate.training.config.keys import Command, command_of, key_of, not_repeated
from zerogate.training.config.resume import (
    NEUTRAL_KEYS,
    RECORD_NEUTRAL_KEYS,
    RESUMABLE_KEYS,
    check_resume,
    resumed,
)
from zerogate.training.run_folder import RunFolder

COMMANDS: tuple[Command, ...] = ("train", "tickets", "compare")


@pytest.mark.parametrize("command", COMMANDS)
def test_neutral_keys_are_keys(command: Command) -> None:
    config = compose([], command)
    assert command_of(config) == command
    for key in {*NEUTRAL_KEYS, *RECORD_NEUTRAL_KEYS, *RESUMABLE_KEYS[command]} - {"data.path"}:  # digits have no path
        assert OmegaConf.select(config, key, default="none") != "none", key
    assert set(NEUTRAL_KEYS) <= set(RESUMABLE_KEYS[command]) and set(NEUTRAL_KEYS) <= set(RECORD_NEUTRAL_KEYS)


def test_a_run_goes_on_with_its_own_values_and_those_that_may_change(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(compose(["experiment=digits", "optimizer.lr=0.5", f"output={tmp_path}"]))
    stored = OmegaConf.load(run.config)
    asked = compose([f"resume={tmp_path}", "trainer.max_epochs=30", "trainer.progress=none", "overwrite=false"])
    config = resumed(asked, tmp_path, stored)
    changed = {key for key, value in leaves(config).items() if leaves(stored)[key] != value}
    assert changed == {"trainer.max_epochs", "trainer.progress"}
    assert (config.trainer.max_epochs, config.resume, config.optimizer.lr) == (30, None, 0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=0.1", r"optimizer\.lr=0\.1 differs from optimizer\.lr=0\.5 of the run to resume; leave it out"),
        ("trainer.max_epochs=2", "is below the 20 of the run to resume; leave it out, or raise it"),
        ("trainer.max_epochs=30", "the learning rates follow the 20 epochs of the run to resume"),
    ],
)
def test_what_would_change_a_run_is_refused(tmp_path: Path, override: str, message: str) -> None:
    stored = compose(["experiment=digits", "optimizer.lr=0.5", "scheduler=cosine"])
    RunFolder(tmp_path).begin(stored)
    with pytest.raises(ConfigError, match=message):
        resumed(compose([f"resume={tmp_path}", override]), tmp_path, stored)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_is_resumed_or_replaced_not_both(command: Command) -> None:
    config = compose([], command)
    check_resume(config)
    config.resume = "outputs/mine"
    check_resume(config)
    config.overwrite = True
    with pytest.raises(ConfigError, match="resume and overwrite=true contradict each other"):
        check_resume(config)


def test_overrides_are_told_by_their_keys() -> None:
    assert [key_of(text) for text in ("a.b=1", "+a.b=c=d", "++a=1", "~a.b", "~a.b=3")] == [
        "a.b",
        "a.b",
        "a",
        "a.b",
        "a.b",
    ]
    assert not_repeated(["+a=1", "b=2"], ["+a=1", "b=3"]) == ["b=2"]
