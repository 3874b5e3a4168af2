"""The configuration of a run: composed from the files in `configs/`, checked, and compared when a run is resumed."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from zerogate.errors import ConfigError, ZerogateError
from zerogate.tickets.time import Time
from zerogate.training.config import moved

try:
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException
except ModuleNotFoundError as error:
    raise ConfigError(f"training by configuration needs {error.name}; pip install 'zerogate[train]'") from error

Command = Literal["train", "tickets", "compare"]
_ROOTS: dict[Command, str] = {"train": "config", "tickets": "tickets", "compare": "compare"}
_NEUTRAL = ("resume", "output", "overwrite", "overrides", "data.path", "data.cache_dir",
            "trainer.progress", "trainer.log_every_n_steps")  # fmt: skip
# What may change on resuming: where things lie and how far they go, nothing that alters a step already planned.
NEUTRAL: dict[Command, tuple[str, ...]] = {
    "train": (*_NEUTRAL, "trainer.max_epochs"),
    "tickets": _NEUTRAL,  # the epochs of a search are those of its stages, which its masks follow
    "compare": (*_NEUTRAL, "compare.kinds", "compare.densities", "compare.seeds", "compare.workers"),
}
LENGTHS = ("T_max", "epochs", "steps")
"""Keys of a schedule that are filled with the epochs, or optimizer steps, of the run where they are null."""


def compose(overrides: Sequence[str] = (), command: Command = "train") -> DictConfig:
    """The configuration that these Hydra overrides make for a command, interpolations resolved and values checked.

    Its key `overrides` keeps them, so that a run can be told apart from another one later. With `resume=RUN` they stand
    beside those of the run, which say what keys there are.

    Raises:
        ConfigError: an override that names nothing, cannot be read, or has a value out of range; RUN's config.yaml is
            damaged.
    """
    overrides = moved.current(list(overrides))
    _import_from_here()
    given = [*_of_run(overrides, command), *overrides]
    try:
        with hydra.initialize_config_module("zerogate.training.configs", version_base="1.3"):
            config = hydra.compose(_ROOTS[command], overrides=given)
            if command == "tickets" and (own := _only(config)):
                config = hydra.compose(_ROOTS[command], overrides=[*own, *given])
        OmegaConf.resolve(config)
        with open_dict(config):
            config.overrides = list(overrides)
            if command == "tickets":
                config.pop("compare", None)  # an experiment may say how it is compared, too
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, command)) from error
    except ValueError as error:  # Hydra's own, such as a group set to null
        raise ConfigError(f"cannot compose {' '.join(overrides)}: {_one_line(error, command)}") from error
    if command == "train" and ("search" in config or "compare" in config):
        raise ConfigError("this experiment is a search for tickets; write `zerogate tickets` in place of train")
    check(config)
    return config


def _import_from_here() -> None:
    """``model._target_`` and ``gate._target_`` may be classes of the user's own, in the current directory."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _of_run(overrides: Sequence[str], command: Command) -> list[str]:
    """The overrides of the run that is to go on, if one is there."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:  # composing says what is wrong
        return []
    paths = [override.value() for override in parsed if override.key_or_group == "resume"]
    if not paths or not _text(paths[-1]):
        return []
    from zerogate.training.run_folder import Run  # imports Lightning, which a run that goes on needs anyway

    path = Run.of(str(paths[-1])).config
    if not path.is_file():
        return []
    stored = load(path)
    return _beside(stored.overrides, overrides) if command_of(stored) == command else []


def _beside(stored: Sequence[str], given: Sequence[str]) -> list[str]:
    """Those of `stored` that are not given again, which +KEY=VALUE and ~KEY cannot be."""
    return [text for text in stored if text not in given]


def _only(config: DictConfig) -> list[str]:
    """The values that are for this kind of ticket alone."""
    only: Any = OmegaConf.select(config, "search.only")
    own: Any = only.get(config.search.kind) if OmegaConf.is_dict(only) else None
    return [f"{key}={json.dumps(value)}" for key, value in leaves(own).items()] if OmegaConf.is_dict(own) else []


def command_of(config: DictConfig) -> Command:
    """Which command a configuration is for."""
    return "compare" if "compare" in config else "tickets" if "search" in config else "train"


def _one_line(error: Exception, command: Command = "train") -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if re.match(r"In '\w+': Could not find", lines[0]) and len(lines) > 1 and lines[1].startswith("Available"):
        missing = lines[0].split("'")[3]
        group, _, option = missing.partition("/")
        options = [line for line in lines[2:] if "=" not in line and not line.startswith("Config search path")]
        return f"unknown {group} {option!r}; choose one of {', '.join(options)}"
    if lines[0].startswith("Could not override"):
        key = lines[0].split("'")[1]
        return f"no such key {key!r}; `zerogate {command} --help` lists them, +{key}=VALUE adds a new one"
    if type(error).__name__ in ("OverrideParseException", "LexerNoViableAltException") or "missing EQUAL" in str(error):
        return f"cannot read the override {lines[0].removeprefix('Error parsing override ')}; write key=value"
    return f"{' '.join(lines)}; `zerogate {command} --help` lists the keys"


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _optional(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def time_of(value: int | str) -> Time:
    """A length: so many epochs, or a time from its text.

    Raises:
        ZerogateError: it is neither.
    """
    return Time(value) if isinstance(value, int) else Time.of(value)


def _time(least: int) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        try:
            time = time_of(value)
        except ZerogateError:
            return False
        return time.epochs + time.iterations >= least

    return test


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: OmegaConf.is_list(value) and len(value) > 0 and all(map(test, value))


def _share(value: Any) -> bool:
    return _number(value) and 0 < value <= 1


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_text, "a name"),
    "seed": (_whole(0), "a whole number of at least 0"),
    "output": (_optional(_text), "a folder, or null"),
    "overwrite": (_flag, "true or false"),
    "resume": (_optional(_text), "a run folder, or null"),
    "init_from": (_optional(_text), "a checkpoint or run folder, or null"),
    "gate_lr": (_optional(lambda value: _number(value) and value >= 0), "a number of at least 0, or null"),
    "sparsify.unit": (lambda value: value in ("channel", "weight"), "channel or weight"),
    "sparsify.per_example": (_flag, "true or false"),
    "sparsify.gate_inputs": (_flag, "true or false"),
    "sparsify.exclude": (
        _optional(lambda value: OmegaConf.is_list(value) and all(map(_text, value))),
        "a list of layer-name patterns, such as [classifier,'*.shortcut'], or null",
    ),
    "channels_last": (_flag, "true or false"),
    "data.seed": (_whole(0), "a whole number of at least 0"),
    "data.batch_size": (_whole(1), "a whole number of at least 1"),
    "data.eval_batch_size": (_whole(1), "a whole number of at least 1"),
    "data.drop_last": (_flag, "true or false"),
    "data.stratified": (_flag, "true or false"),
    "data.validation": (_optional(_whole(0)), "a whole number, or null"),
    "data.limit": (_optional(_whole(1)), "a whole number of at least 1, or null"),
    "data.num_classes": (_optional(_whole(1)), "a whole number of at least 1, or null"),
    "data.augment.flip": (_flag, "true or false"),
    "data.augment.crop": (_whole(0), "a number of pixels, 0 for none"),
    "optimizer.lr": (lambda value: _number(value) and value >= 0, "a number of at least 0"),
    "optimizer.weight_decay": (_optional(lambda v: _number(v) and v >= 0), "a number of at least 0"),
    "trainer.max_epochs": (_whole(1), "a whole number of at least 1"),
    "trainer.max_steps": (_optional(_whole(1)), "a whole number of at least 1, or null"),
    "trainer.accumulate_grad_batches": (_whole(1), "a whole number of at least 1"),
    "trainer.log_every_n_steps": (_whole(1), "a whole number of at least 1"),
    "trainer.gradient_clip_val": (_optional(lambda v: _number(v) and v > 0), "a positive number, or null"),
    "trainer.deterministic": (_flag, "true or false"),
    "trainer.progress": (lambda value: value in ("auto", "bar", "plain", "none"), "auto, bar, plain or none"),
}

_LENGTH = "a whole number of epochs, a time such as 4ep, 1500it or 2ep100it, or null"
_SEARCH_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "search.kind": (_optional(_text), "a name, or null"),
    "search.density": (_optional(_share), "a share in (0, 1], or null"),
    "search.rounds": (_whole(0), "a whole number of at least 0"),
    "search.length": (_optional(_time(1)), _LENGTH),
    "search.final_length": (_optional(_time(1)), _LENGTH),
    "search.rewind": (_time(0), "a time such as 2ep, 1500it or 2ep100it"),
    "search.rewind_optimizer": (_flag, "true or false"),
    "search.only": (
        lambda value: OmegaConf.is_dict(value) and all(map(OmegaConf.is_dict, value.values())),
        "keys of the configuration by kind; +search.only.l0.gate_lr=0.5 is one",
    ),
    "search.reset": (lambda value: value in ("paper", "code"), "paper or code"),
    "trainer.max_steps": (
        lambda value: value is None,
        "null in a search; search.length=1500it is the length of a round",
    ),
}
_COMPARE_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "compare.kinds": (_list_of(_text), "a list of kinds of ticket, such as [cs,imp,random]"),
    "compare.densities": (_list_of(_share), "a list of shares in (0, 1], such as [0.5,0.2]"),
    "compare.seeds": (_whole(1), "a whole number of at least 1"),
    "compare.workers": (_optional(_whole(1)), "a whole number of at least 1, or null"),
    "compare.equal": (lambda value: value in ("search", "final"), "search or final"),
    "search.density": (lambda value: value is None, "null in a comparison; give compare.densities=[0.5,0.2]"),
}


def check(config: DictConfig) -> None:
    """Raise `ConfigError` for the first value that cannot be meant; classes check their own arguments later."""
    command = command_of(config)
    nodes = {"tickets": ("search",), "compare": ("search", "compare"), "train": ()}[command]
    groups = ("model", "data", "gate", "objective", "optimizer", "scheduler", "trainer")
    for group in (*groups, *nodes):
        if not OmegaConf.is_dict(config.get(group)):
            raise ConfigError(
                f"{group}={config.get(group)!r} is no configuration; `zerogate {command} --help` lists those"
            )
    checks = [
        _CHECKS,
        *([_SEARCH_CHECKS] if "search" in nodes else []),
        *([_COMPARE_CHECKS] if "compare" in nodes else []),
    ]
    for key, (test, wanted) in (item for table in checks for item in table.items()):
        value = OmegaConf.select(config, key)
        if not test(value):
            raise ConfigError(f"{key}={value!r} will not do; {key} takes {wanted}")
    for group in ("model", "optimizer"):
        if not config[group].get("_target_"):
            raise ConfigError(f"{group}._target_ is null; give an import path such as {group}._target_=package.Class")


def leaves(config: DictConfig) -> dict[str, Any]:
    """Every value in a configuration by its dotted key; lists count as one value."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(OmegaConf.to_container(config), ""))


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
        raise ConfigError(f"{path} cannot be read ({_one_line(error)}); restore it or train anew") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is no configuration of a run; restore it or train anew")
    check(config)
    return renewed(config)


def renewed(config: DictConfig) -> DictConfig:
    """`config` with public names where it has import paths of before something moved, in values and overrides."""
    config = config.copy()
    for key, value in leaves(config).items():
        if (now := moved.current(value)) != value:
            OmegaConf.update(config, key, now)
    return config


def amend(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`config` with the values of plain key=value overrides; every key must be there already.

    Raises:
        ConfigError: an override that cannot be read, or a key that the run does not have.
    """
    config = config.copy()
    try:
        parsed = OverridesParser.create().parse_overrides(moved.current(list(overrides)))
    except HydraException as error:
        raise ConfigError(_one_line(error)) from error
    known = leaves(config)
    for override in parsed:
        if override.key_or_group not in known or override.is_add() or override.is_delete():
            raise ConfigError(f"this run has no key {override.key_or_group!r}; its config.yaml lists those that it has")
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=False)
    check(config)
    return config


def resumed(asked: DictConfig, folder: Path, stored: DictConfig) -> DictConfig:
    """The configuration with which the run in `folder` goes on: its own, plus what `asked` may change.

    Raises:
        ConfigError: `asked` differs from the run in something that would change its result.
    """
    given = [text for text in asked.overrides if text.split("=")[0] not in ("resume", "output", "overwrite")]
    command = command_of(stored)
    before = compose(stored.overrides, command)
    after = compose([*_beside(stored.overrides, given), *given], command)
    config = stored.copy()
    old, new = leaves(before), leaves(after)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        if key not in NEUTRAL[command]:
            raise ConfigError(
                f"{key}={new.get(key)} differs from {key}={old.get(key)} of the run to resume; leave it out, "
                f"or start a new run with init_from={folder}"
            )
        if key not in ("resume", "output", "overwrite", "overrides"):
            OmegaConf.update(config, key, new.get(key))
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
    return config
