"""The configuration of a run: composed from the files in `configs/`, read back from a run's folder, changed by overrides."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerogate.errors import ConfigError
from zerogate.training.config import moved
from zerogate.training.config.checks import check, is_text
from zerogate.training.config.keys import CALL_KEYS, Command, command_of, key_of, not_repeated
from zerogate.training.config.libraries import (
    DictConfig,
    HydraException,
    OmegaConf,
    OmegaConfBaseException,
    OverridesParser,
    hydra,
    open_dict,
)
from zerogate.training.config.messages import explain
from zerogate.training.run_folder import RunFolder

_ROOTS: dict[Command, str] = {"train": "config", "tickets": "tickets", "compare": "compare"}
"""The file of `configs/` that a command begins with."""


def compose(overrides: Sequence[str] = (), command: Command = "train") -> DictConfig:
    """The configuration that Hydra overrides make for a command, with interpolations resolved and values checked.

    Its key `overrides` keeps them for the record. With `resume=RUN` they come on top of the overrides of that run, which
    may have added keys and chosen groups.

    Raises:
        ConfigError: an override that names nothing, cannot be read, or has a value out of range; RUN's config.yaml is
            damaged.
    """
    overrides = moved.current(list(overrides))
    _import_from_here()
    whole = [*_of_resumed_run(overrides, command), *overrides]
    try:
        with hydra.initialize_config_module("zerogate.training.configs", version_base="1.3"):
            config = hydra.compose(_ROOTS[command], overrides=whole)
            if command == "tickets" and (own := _only_for_its_kind(config)):
                config = hydra.compose(_ROOTS[command], overrides=[*own, *whole])
        OmegaConf.resolve(config)
        with open_dict(config):
            config.overrides = list(overrides)
            if command == "tickets":
                config.pop("compare", None)  # an experiment may say how it is compared, too
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, command)) from error
    except ValueError as error:  # Hydra's own, such as a group set to null
        raise ConfigError(f"cannot compose {' '.join(overrides)}: {explain(error, command)}") from error
    if command == "train" and ("search" in config or "compare" in config):
        raise ConfigError("this experiment is a search for tickets; write `zerogate tickets` in place of train")
    check(config)
    return config


def _import_from_here() -> None:
    """``model._target_`` and ``gate._target_`` may be classes of the user's own, in the current directory."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _of_resumed_run(overrides: Sequence[str], command: Command) -> list[str]:
    """The overrides of the run that `resume=RUN` names; none if there is no such override or no such run."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:  # `compose` meets the same error and explains it
        return []
    paths = [override.value() for override in parsed if override.key_or_group == "resume"]
    if not paths or not is_text(paths[-1]):
        return []
    path = RunFolder.of(str(paths[-1])).config
    if not path.is_file():
        return []
    stored = load(path)
    own = [text for text in stored.overrides if key_of(text) not in CALL_KEYS]
    return not_repeated(own, overrides) if command_of(stored) == command else []


def _only_for_its_kind(config: DictConfig) -> list[str]:
    """The values of `search.only` that are for the kind of ticket of this configuration, as overrides."""
    only = OmegaConf.select(config, "search.only")
    own = only.get(config.search.kind) if isinstance(only, DictConfig) else None
    return [f"{key}={json.dumps(value)}" for key, value in leaves(own).items()] if isinstance(own, DictConfig) else []


def leaves(config: DictConfig) -> dict[str, Any]:
    """Every value of a configuration by its dotted key; a list is one value."""
    values: dict[str, Any] = {}

    def walk(node: object, prefix: str) -> None:
        if not isinstance(node, dict):
            values[prefix] = node
            return
        for key, value in node.items():
            walk(value, f"{prefix}.{key}" if prefix else str(key))

    walk(OmegaConf.to_container(config), "")
    return values


def load(path: Path) -> DictConfig:
    """The configuration of an earlier run, from its config.yaml.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    _import_from_here()
    if not path.is_file():
        raise ConfigError(
            f"{path.parent} holds no run (no {path.name}); give the output folder of `zerogate train` or `tickets`"
        )
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # yaml has its own family of exceptions
        raise ConfigError(f"{path} cannot be read ({explain(error)}); restore it or train anew") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is no configuration of a run; restore it or train anew")
    check(config)
    return renewed(config)


def renewed(config: DictConfig) -> DictConfig:
    """A copy of a configuration with public names in place of import paths that have moved, in values and overrides."""
    config = config.copy()
    for key, value in leaves(config).items():
        if (now := moved.current(value)) != value:
            OmegaConf.update(config, key, now)
    return config


def amend(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a configuration with the values of plain key=value overrides, whose keys it must have already.

    Raises:
        ConfigError: an override that cannot be read, or a key that the run does not have.
    """
    config = config.copy()
    try:
        parsed = OverridesParser.create().parse_overrides(moved.current(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error)) from error
    existing = leaves(config)
    for override in parsed:
        if override.key_or_group not in existing or override.is_add() or override.is_delete():
            raise ConfigError(f"this run has no key {override.key_or_group!r}; its config.yaml lists those that it has")
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=False)
    check(config)
    return config
