"""Whole numbers in attributes, and in containers that these are."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from zerogate.modules.held_numbers import attributes_of, becomes, is_new_value_of, number_at, numbers_in, with_numbers

Pair = namedtuple("Pair", "name size")


def test_numbers_are_found_where_they_are() -> None:
    value = {"h": 4, "names": ("a", 4), 3: 4, "pairs": (("h", 5), ("flag", True))}
    assert list(numbers_in(value, 8, 3)) == [(("h",), 4), (("names", 1), 4), (("pairs", 0, 1), 5)]
    assert list(numbers_in(value, 8, 2)) == [(("h",), 4), (("names", 1), 4)]
    assert list(numbers_in([1, 2, 3], 2, 3)) == []
    assert list(numbers_in(7, 8, 0)) == [((), 7)]
    assert all(number_at(value, entry) == number for entry, number in numbers_in(value, 8, 3))


@pytest.mark.parametrize(
    ("value", "sizes", "size", "changed"),
    [
        (4, {(): 2}, 2, 2),
        ((4, 3, 4), {(0,): 2, (2,): 2}, [2, 3, 2], (2, 3, 2)),
        ([4, "a"], {(0,): 2}, [2, None], [2, "a"]),
        (torch.Size([4, 3]), {(0,): 2}, [2, 3], torch.Size([2, 3])),
        ({"h": 4, "w": 3}, {("h",): 2}, {"h": 2}, {"h": 2, "w": 3}),
        ((("h", 4), ("w", 3)), {(0, 1): 2}, [[None, 2], None], (("h", 2), ("w", 3))),
        (OrderedDict(a=[4, 4]), {("a", 1): 2}, {"a": [4, 2]}, OrderedDict(a=[4, 2])),
        (Pair("h", 4), {(1,): 2}, [None, 2], Pair("h", 2)),
    ],
)
def test_what_a_value_becomes(value: Any, sizes: dict[Any, int], size: Any, changed: Any) -> None:
    before = repr(value)
    assert becomes(value, sizes) == size and is_new_value_of(size, value)
    made = with_numbers(value, size)
    assert made == changed and type(made) is type(value)
    assert repr(value) == before  # a copy may share it


@pytest.mark.parametrize(
    ("size", "value"),
    [
        (1, True),
        (True, 1),
        ([1], 1),
        (1, (1,)),
        ([1, 2], (1,)),
        ([None], (1,)),
        ([], ()),
        ([1], ("a",)),
        ({}, {"a": 1}),
        ({"b": 1}, {"a": 1}),
        ({"a": None}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": 1}),
        ([1], {"a": 1}),
        (None, 1),
    ],
)
def test_what_does_not_fit_a_value(size: object, value: object) -> None:
    assert not is_new_value_of(size, value)


def test_attributes_are_those_that_a_module_has_of_its_own() -> None:
    module = nn.Linear(3, 2)
    module.note = (3, 2)
    assert dict(attributes_of(module)) == {"in_features": 3, "out_features": 2, "note": (3, 2)}


def test_a_dict_whose_class_forbids_changes_is_copied_with_new_numbers() -> None:
    class Frozen(dict[str, int]):
        def update(self, *args: object, **kwargs: object) -> None:
            raise TypeError("frozen")

    value = Frozen(heads=4, width=8)
    changed = with_numbers(value, {"heads": 2})
    assert type(changed) is Frozen and changed == {"heads": 2, "width": 8} and value["heads"] == 4
