"""Whole numbers that modules hold: in attributes, and in tuples, lists and dicts that these are.

A container is never written into, since a copy of the module may share it: what lies on the way to a number is made anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from torch import nn

from zerogate.checks import is_whole

Entry = tuple[int | str, ...]
"""Where in an attribute a number is: the places and keys that lead to it; () where it is the attribute itself."""

NewValue = int | list[Any] | dict[str, Any]
"""What an attribute becomes: a number; of a tuple or list a list of what each of its places becomes, of a dict only the
keys that change. None stands for a place that stays as it is."""

_OWN = frozenset(vars(nn.Module())) | {"zerogate_plan"}


def attributes_of(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Names and values of what a module holds itself, without what every module has."""
    for name, value in vars(module).items():
        if name not in _OWN:
            yield name, value


def numbers_in(value: object, longest: int, deepest: int) -> Iterator[tuple[Entry, int]]:
    """Every whole number in an attribute's value and where it is, through containers of at most ``longest`` entries, of
    which at most ``deepest`` lie one in another."""
    if type(value) is int:
        yield (), value
    elif deepest and (items := _items(value)) and len(items) <= longest:
        for key, item in items:
            for entry, number in numbers_in(item, longest, deepest - 1):
                yield (key, *entry), number


def number_at(value: Any, entry: Entry) -> int:
    """The number at that place in an attribute's value; it must be there."""
    for key in entry:
        value = value[key]
    number: int = value
    return number


def becomes(value: Any, sizes: Mapping[Entry, int]) -> NewValue:
    """What an attribute of this value becomes with these numbers in it, at places that are there."""
    if () in sizes:
        return sizes[()]
    inside: dict[int | str, dict[Entry, int]] = {}
    for entry, size in sizes.items():
        inside.setdefault(entry[0], {})[entry[1:]] = size
    if isinstance(value, dict):
        return {str(key): becomes(value[key], each) for key, each in inside.items()}
    return [
        becomes(item, inside[i]) if i in inside else item if is_whole(item, least=None) else None
        for i, item in enumerate(value)
    ]


def is_new_value_of(new: object, value: object) -> TypeGuard[NewValue]:
    """Whether this says what an attribute of this value becomes: numbers where there are numbers."""
    if is_whole(value, least=None) or is_whole(new, least=None):
        return is_whole(value, least=None) and is_whole(new, least=None)
    if isinstance(value, dict):
        return (
            isinstance(new, dict)
            and bool(new)
            and all(key in value and is_new_value_of(each, value[key]) for key, each in new.items())
        )
    if not isinstance(value, (tuple, list)) or not isinstance(new, list) or len(value) != len(new):
        return False
    changes = [(each, item) for each, item in zip(new, value, strict=True) if each is not None]
    return bool(changes) and all(is_new_value_of(each, item) for each, item in changes)


def with_numbers(value: Any, new: NewValue | None) -> Any:
    """An attribute's value with new numbers in it: new containers of the same kinds."""
    if new is None or not isinstance(new, (list, dict)):
        return value if new is None else new
    if isinstance(new, dict):
        changed = copy.copy(value)  # nobody else holds it: it may be written into although its class forbids that
        dict.update(changed, {key: with_numbers(value[key], each) for key, each in new.items()})
        return changed
    items = [with_numbers(item, each) for item, each in zip(value, new, strict=True)]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def _items(value: object) -> list[tuple[int | str, object]]:
    """Places or keys of a container and what is there; of a dict only those that are strings."""
    if isinstance(value, dict):
        return [(key, item) for key, item in value.items() if isinstance(key, str)]
    return list(enumerate(value)) if isinstance(value, (tuple, list)) else []
