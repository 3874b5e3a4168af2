"""The arguments of commands that take a finished run."""

from __future__ import annotations

import pytest

from zerogate.cli.run_arguments import run_arguments
from zerogate.errors import ConfigError


def test_a_run_its_checkpoint_and_values_in_any_order() -> None:
    assert run_arguments("eval", ["RUN"]) == ("RUN", "last", [])
    assert run_arguments("eval", ["a=1", "which=best", "RUN", "b=[2]"]) == ("RUN", "best", ["a=1", "b=[2]"])


@pytest.mark.parametrize(("arguments", "count"), [([], 0), (["a=1"], 0), (["one", "two"], 2)])
def test_one_run_no_more_and_no_less(arguments: list[str], count: int) -> None:
    with pytest.raises(ConfigError, match=f"compact takes one run folder, got {count}; write zerogate compact RUN"):
        run_arguments("compact", arguments)
