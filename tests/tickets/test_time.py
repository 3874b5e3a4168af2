"""Points in a run."""

from __future__ import annotations

from typing import Any

import pytest

import zerogate as zg


@pytest.mark.parametrize(("text", "steps"), [("2ep", 200), ("1500it", 1500), ("2ep100it", 300), ("0it", 0), ("0ep", 0)])
def test_times(text: str, steps: int) -> None:
    assert zg.Time.of(text).steps(100) == steps
    assert zg.Time.of(str(zg.Time.of(text))) == zg.Time.of(text)


@pytest.mark.parametrize("text", ["", " ", "ep", "2", "-1ep", "1.5ep", "100it2ep", "2 ep", "2epochs", None, 3, "1e"])
def test_texts_that_are_no_time_are_refused(text: Any) -> None:
    with pytest.raises(zg.ZerogateError, match="2ep100it"):
        zg.Time.of(text)
    with pytest.raises(zg.ZerogateError, match="epochs"):
        zg.Time(epochs=-1)
