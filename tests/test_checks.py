"""One wording for what was expected and what was received."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from zerogate.checks import check_choice, check_share, check_whole, is_number, is_share, is_whole
from zerogate.errors import ZerogateError


@pytest.mark.parametrize("value", [True, 0, -1, 1.0, "1", None, np.int64(3), math.nan])
def test_what_is_no_whole_number_is_named(value: Any) -> None:
    assert not is_whole(value)
    with pytest.raises(ZerogateError) as error:
        check_whole("steps", value)
    assert str(error.value) == f"steps must be a whole number of at least 1, got {value!r}"


@pytest.mark.parametrize("value", [True, 0, -0.1, 1.1, "0.5", None, math.nan, math.inf])
def test_what_is_no_share_is_named(value: Any) -> None:
    assert not is_share(value)
    with pytest.raises(ZerogateError) as error:
        check_share("params", value)
    assert str(error.value) == f"params must be a share in (0, 1], got {value!r}"


def test_what_fits_passes() -> None:
    check_whole("rounds", 0, least=0)
    check_whole("steps", None, optional=True)
    check_share("share", np.float32(0.5))
    check_share("share", None, optional=True)
    check_choice("reset", "paper", ("paper", "code"))
    assert is_number(-1.5) and is_number(np.float64(2)) and not is_number(math.inf)


def test_choices_and_ways_out_are_said() -> None:
    with pytest.raises(ZerogateError, match=r"^reset must be one of paper, code, got 'other'$"):
        check_choice("reset", "other", ("paper", "code"))
    with pytest.raises(ZerogateError, match=r"at least 1, or None, got 0; leave it out$"):
        check_whole("every", 0, optional=True, way_out="leave it out")


def test_whole_numbers_of_any_size_and_of_a_least_one() -> None:
    assert is_whole(0, least=0) and not is_whole(-1, least=0)
    assert [is_whole(value, least=None) for value in (-8, 0, False, 2.5)] == [True, True, False, False]
