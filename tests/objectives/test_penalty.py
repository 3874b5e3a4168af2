"""`Penalty`: what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

import zerogate as zg


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: zg.Penalty(-0.5), "-0.5"),
        (lambda: zg.Penalty(math.nan), "nan"),
        (lambda: zg.Penalty(over="flops"), "flops"),  # type: ignore[arg-type]
        (lambda: zg.Penalty(reduce="max"), "max"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(make: Callable[[], object], value: str) -> None:
    with pytest.raises(zg.ZerogateError, match=f"got '?{value}"):
        make()
