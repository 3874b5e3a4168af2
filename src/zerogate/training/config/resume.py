"""What may change when a run goes on, and the configuration with which it does."""

from __future__ import annotations

from pathlib import Path

from zerogate.errors import ConfigError
from zerogate.training.config.compose import compose, leaves
from zerogate.training.config.keys import (
    CALL_KEYS,
    LENGTHS,
    NEUTRAL_KEYS,
    RECORD_NEUTRAL_KEYS,
    RESUMABLE_KEYS,
    command_of,
    key_of,
    not_repeated,
)
from zerogate.training.config.libraries import DictConfig, OmegaConf

__all__ = ["NEUTRAL_KEYS", "RECORD_NEUTRAL_KEYS", "RESUMABLE_KEYS", "check_resume", "resumed"]


def check_resume(config: DictConfig) -> None:
    """Raise `ConfigError` for a configuration that resumes a run and replaces it, too."""
    if config.resume and config.overwrite:
        raise ConfigError("resume and overwrite=true contradict each other; give one of them")


def resumed(asked: DictConfig, folder: Path, stored: DictConfig) -> DictConfig:
    """The configuration with which a run goes on: the one stored in its folder, plus what may change.

    Args:
        asked: as composed from the overrides of this call.
        folder: the run's, for messages.
        stored: the run's own configuration.

    Raises:
        ConfigError: `asked` differs from the run in a key that would change its result.
    """
    overrides = [text for text in asked.overrides if key_of(text) not in CALL_KEYS]
    command = command_of(stored)
    before = compose(stored.overrides, command)
    after = compose([*not_repeated(stored.overrides, overrides), *overrides], command)
    config = stored.copy()
    old, new = leaves(before), leaves(after)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        if key not in RESUMABLE_KEYS[command]:
            raise ConfigError(
                f"{key}={new.get(key)} differs from {key}={old.get(key)} of the run to resume; leave it out, "
                f"or start a new run with init_from={folder}"
            )
        if key not in (*CALL_KEYS, "overrides"):
            OmegaConf.update(config, key, new.get(key))
    _check_length(config, stored, folder)
    return config


def _check_length(config: DictConfig, stored: DictConfig, folder: Path) -> None:
    """Raise `ConfigError` if the run would become shorter, or longer under a schedule that follows its length."""
    if config.trainer.max_epochs < stored.trainer.max_epochs:
        raise ConfigError(
            f"trainer.max_epochs={config.trainer.max_epochs} is below the {stored.trainer.max_epochs} of the run to "
            "resume; leave it out, or raise it"
        )
    if config.trainer.max_epochs > stored.trainer.max_epochs:
        for group in ("scheduler", "gate_scheduler"):
            node = stored.get(group) or {}
            if node.get("_target_") and any(key in node and node[key] is None for key in LENGTHS):
                raise ConfigError(
                    f"the learning rates follow the {stored.trainer.max_epochs} epochs of the run to resume "
                    f"({group}._target_={node['_target_']}), so trainer.max_epochs={config.trainer.max_epochs} would be "
                    f"another run; start it anew with init_from={folder}"
                )
