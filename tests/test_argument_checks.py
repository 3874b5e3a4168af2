"""Checks of arguments: what counts as whole, as a number and as a share, and how a refusal is worded."""

from __future__ import annotations

import math

import numpy
import pytest

from zerogate.checks import check_choice, check_share, check_whole, is_number, is_share, is_whole
from zerogate.errors import ZerogateError


def test_a_whole_number_is_an_int_and_no_bool() -> None:
    assert [is_whole(value) for value in (1, 7, 0, -1, True, 1.0, "1", None, numpy.int64(1))] == [True] * 2 + [
        False
    ] * 7
    assert is_whole(0, least=0) and not is_whole(-1, least=0)
    assert [is_whole(value, least=None) for value in (-8, 0, False, 2.5)] == [True, True, False, False]


def test_a_number_is_finite_and_a_share_is_above_0_and_at_most_1() -> None:
    assert all(is_number(value) for value in (0, -1.5, numpy.float32(2), numpy.int64(3)))
    assert not any(is_number(value) for value in (True, math.nan, math.inf, "1", None, 1j))
    assert [is_share(value) for value in (1, 1e-9, 0, 1.01, True, math.nan)] == [True, True, False, False, False, False]


def test_a_refusal_names_the_argument_what_it_takes_and_the_value() -> None:
    with pytest.raises(ZerogateError, match=r"^epochs must be a whole number of at least 1, got 2\.5$"):
        check_whole("epochs", 2.5)
    with pytest.raises(ZerogateError, match=r"^share must be a share in \(0, 1\], or None, got 0$"):
        check_share("share", 0, optional=True)
    with pytest.raises(ZerogateError, match=r"^over must be one of params, macs, got 'flops'$"):
        check_choice("over", "flops", ("params", "macs"))
    check_whole("epochs", None, optional=True)
    check_share("share", None, optional=True)
    check_choice("over", "macs", ("params", "macs"))
