"""From a node of the configuration to the object that its `_target_` names."""

from __future__ import annotations

import inspect
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from zerogate.errors import ConfigError, ZerogateError, one_line


def instantiate(group: str, node: DictConfig, **extra: object) -> Any:
    """What `node._target_` makes of the other keys of a node, and of `extra`; keys that are null are left to its defaults.

    Args:
        group: the group of the configuration that the node is, for messages.

    Raises:
        ConfigError: the target cannot be imported, or does not take these arguments.
        ZerogateError: the target itself raised one.
    """
    arguments = {key: value for key, value in node.items() if value is not None}
    try:
        return hydra.utils.instantiate({**arguments, **extra})
    except (HydraException, TypeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
            if isinstance(cause, ZerogateError):
                raise cause from None
        raise ConfigError(
            f"{group}._target_={node._target_} cannot be made: {one_line(cause)}; correct the {group} keys"
        ) from error


def plain(node: DictConfig) -> dict[str, Any]:
    """The values of a node by key, as plain dicts and lists."""
    return {
        str(key): OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in node.items()
    }


def import_target(group: str, node: DictConfig) -> Any:
    """The class or function that `node._target_` names.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return hydra.utils.get_object(node._target_)
    except Exception as error:  # importing a module of the user's may raise anything
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        raise ConfigError(
            f"{group}._target_={node._target_} cannot be imported: {one_line(error)}; give package.module.Class, "
            "in the current directory or installed"
        ) from error


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters that a class or function takes, by name; {} if it does not tell."""
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return {}
