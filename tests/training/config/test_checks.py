"""Which values the keys of a configuration take."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from zerogate.errors import ConfigError
from zerogate.training.config import checks
from zerogate.training.config.compose import compose
from zerogate.training.config.keys import Command


@pytest.mark.parametrize(("command", "table"), [
    ("train", checks.COMMON_CHECKS), ("tickets", checks.SEARCH_CHECKS), ("compare", checks.COMPARE_CHECKS)
])  # fmt: skip
def test_every_checked_key_exists_and_refuses_nonsense(command: Command, table: checks.Checks) -> None:
    config = compose([], command)
    for key in table:
        assert OmegaConf.select(config, key, default="none") != "none"
        wrong = config.copy()
        OmegaConf.update(wrong, key, {"a": 1}, merge=False, force_add=True)
        with pytest.raises(ConfigError, match=key):
            checks.check(wrong)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "true", "''"])
def test_rates_are_finite_and_not_negative(value: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        compose([f"optimizer.lr={value}"])


def test_a_value_that_will_not_do_is_shown_beside_what_will() -> None:
    config = compose(["experiment=digits"])
    config.trainer.progress = "loud"
    with pytest.raises(ConfigError, match=r"^invalid trainer\.progress='loud': expected auto, bar, plain or none$"):
        checks.check(config)


@pytest.mark.parametrize(
    ("value", "time"), [(4, (4, 0)), ("4ep", (4, 0)), ("1500it", (0, 1500)), ("2ep100it", (2, 100))]
)
def test_a_length_is_epochs_or_a_time(value: int | str, time: tuple[int, int]) -> None:
    length = checks.time_of(value)
    assert (length.epochs, length.iterations) == time
