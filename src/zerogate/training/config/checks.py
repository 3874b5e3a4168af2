"""Which values the keys of a configuration take. Classes check their own arguments when they are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from zerogate.checks import is_number, is_share, is_whole
from zerogate.errors import ConfigError, ZerogateError
from zerogate.tickets.time import Time
from zerogate.training.config.keys import command_of
from zerogate.training.config.libraries import DictConfig, ListConfig, OmegaConf

Test = Callable[[object], bool]
Checks = dict[str, tuple[Test, str]]
"""By dotted key: whether a value will do, and in words what will."""


def time_of(value: int | str) -> Time:
    """A length: a number of epochs, or a time such as 4ep, 1500it or 2ep100it.

    Raises:
        ZerogateError: it is neither.
    """
    return Time(value) if isinstance(value, int) else Time.of(value)


def is_text(value: object) -> bool:
    """Whether a value is a string that is not empty."""
    return isinstance(value, str) and value != ""


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_rate(value: object) -> bool:
    return is_number(value) and value >= 0


def _is_positive(value: object) -> bool:
    return is_number(value) and value > 0


def _is_null(value: object) -> bool:
    return value is None


def _is_choice(*choices: str) -> Test:
    return lambda value: value in choices


def _at_least(least: int) -> Test:
    return partial(is_whole, least=least)


def _optional(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _is_list_of(test: Test, value: object, least: int = 1) -> bool:
    return isinstance(value, ListConfig) and len(value) >= least and all(map(test, value))


def _is_time(least: int) -> Test:
    def test(value: object) -> bool:
        if not isinstance(value, (int, str)):
            return False
        try:
            time = time_of(value)
        except ZerogateError:
            return False
        return time.epochs + time.iterations >= least

    return test


def _is_dict_of_dicts(value: object) -> bool:
    return isinstance(value, DictConfig) and all(map(OmegaConf.is_dict, value.values()))


_FLAG = (_is_flag, "true or false")
_COUNT_0 = (_at_least(0), "a whole number of at least 0")
_COUNT_1 = (_at_least(1), "a whole number of at least 1")
_OPTIONAL_COUNT_1 = (_optional(_at_least(1)), "a whole number of at least 1, or null")
_LENGTH = (_optional(_is_time(1)), "a whole number of epochs, a time such as 4ep, 1500it or 2ep100it, or null")

COMMON_CHECKS: Checks = {
    "name": (is_text, "a name"),
    "seed": _COUNT_0,
    "output": (_optional(is_text), "a folder, or null"),
    "overwrite": _FLAG,
    "resume": (_optional(is_text), "a run folder, or null"),
    "init_from": (_optional(is_text), "a checkpoint or run folder, or null"),
    "gate_lr": (_optional(_is_rate), "a number of at least 0, or null"),
    "sparsify.unit": (_is_choice("channel", "weight"), "channel or weight"),
    "sparsify.per_example": _FLAG,
    "sparsify.gate_inputs": _FLAG,
    "sparsify.exclude": (
        _optional(partial(_is_list_of, is_text, least=0)),
        "a list of layer-name patterns, such as [classifier,'*.shortcut'], or null",
    ),
    "channels_last": _FLAG,
    "data.seed": _COUNT_0,
    "data.batch_size": _COUNT_1,
    "data.eval_batch_size": _COUNT_1,
    "data.drop_last": _FLAG,
    "data.stratified": _FLAG,
    "data.validation": (_optional(_at_least(0)), "a whole number, or null"),
    "data.limit": _OPTIONAL_COUNT_1,
    "data.num_classes": _OPTIONAL_COUNT_1,
    "data.augment.flip": _FLAG,
    "data.augment.crop": (_at_least(0), "a number of pixels, 0 for none"),
    "optimizer.lr": (_is_rate, "a number of at least 0"),
    "optimizer.weight_decay": (_optional(_is_rate), "a number of at least 0"),
    "trainer.max_epochs": _COUNT_1,
    "trainer.max_steps": _OPTIONAL_COUNT_1,
    "trainer.accumulate_grad_batches": _COUNT_1,
    "trainer.log_every_n_steps": _COUNT_1,
    "trainer.gradient_clip_val": (_optional(_is_positive), "a positive number, or null"),
    "trainer.deterministic": _FLAG,
    "trainer.progress": (_is_choice("auto", "bar", "plain", "none"), "auto, bar, plain or none"),
}
SEARCH_CHECKS: Checks = {
    "search.kind": (_optional(is_text), "a name, or null"),
    "search.density": (_optional(is_share), "a share in (0, 1], or null"),
    "search.rounds": _COUNT_0,
    "search.length": _LENGTH,
    "search.final_length": _LENGTH,
    "search.rewind": (_is_time(0), "a time such as 2ep, 1500it or 2ep100it"),
    "search.rewind_optimizer": _FLAG,
    "search.only": (_is_dict_of_dicts, "keys of the configuration by kind; +search.only.l0.gate_lr=0.5 is one"),
    "search.reset": (_is_choice("paper", "code"), "paper or code"),
    "trainer.max_steps": (_is_null, "null in a search; search.length=1500it is the length of a round"),
}
COMPARE_CHECKS: Checks = {
    "compare.kinds": (partial(_is_list_of, is_text), "a list of kinds of ticket, such as [cs,imp,random]"),
    "compare.densities": (partial(_is_list_of, is_share), "a list of shares in (0, 1], such as [0.5,0.2]"),
    "compare.seeds": _COUNT_1,
    "compare.workers": _OPTIONAL_COUNT_1,
    "compare.equal": (_is_choice("search", "final"), "search or final"),
    "search.density": (_is_null, "null in a comparison; give compare.densities=[0.5,0.2]"),
}
_CHECKS = {
    "train": (COMMON_CHECKS,),
    "tickets": (COMMON_CHECKS, SEARCH_CHECKS),
    "compare": (COMMON_CHECKS, SEARCH_CHECKS, COMPARE_CHECKS),
}
_GROUPS = ("model", "data", "gate", "objective", "optimizer", "scheduler", "trainer")
_NODES = {"train": _GROUPS, "tickets": (*_GROUPS, "search"), "compare": (*_GROUPS, "search", "compare")}


def check(config: DictConfig) -> None:
    """Raise `ConfigError` for the first value that its key does not take."""
    command = command_of(config)
    for group in _NODES[command]:
        if not OmegaConf.is_dict(config.get(group)):
            raise ConfigError(
                f"{group}={config.get(group)!r} is no configuration; `zerogate {command} --help` lists those"
            )
    for checks in _CHECKS[command]:
        for key, (test, expected) in checks.items():
            value = OmegaConf.select(config, key)
            if not test(value):
                raise ConfigError(f"invalid {key}={value!r}: expected {expected}")
    for group in ("model", "optimizer"):
        if not config[group].get("_target_"):
            raise ConfigError(f"{group}._target_ is null; give an import path such as {group}._target_=package.Class")
