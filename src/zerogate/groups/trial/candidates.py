"""Where a size may be written: whole numbers among the attributes of modules near the op that took it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from torch import Tensor, nn

from zerogate.groups.limits import DEEPEST_SIZE, LONGEST_SIZE_LIST
from zerogate.modules.copies import deep_copy, is_copied_plainly
from zerogate.modules.held_numbers import Entry, attributes_of, becomes, number_at, numbers_in, with_numbers
from zerogate.modules.index import join_name, modules_around

Numbers = Mapping[tuple[str, Entry], int]
"""Attributes of one module, places in them, and what these are to become."""


def modules_near(path: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of a module, of all modules around it from the inside out, and of those that it holds itself.

    The last because a module's methods can be called without its forward, by the module that holds it.
    """
    return modules_around(path) + [join_name(path, name) for name, _ in modules[path].named_children()]


def attributes_equal_to(size: int, module: nn.Module | None) -> list[tuple[str, Entry]]:
    """Attributes of a module that are this number, with the place in them where they are tuples, lists or dicts."""
    return [(name, entry) for name, entry, number in numbers_of(module) if number == size]


def numbers_of(module: nn.Module | None, deepest: int = DEEPEST_SIZE) -> Iterator[tuple[str, Entry, int]]:
    """Every whole number among the attributes of a module, inside so many containers: attribute, place in it, number."""
    for name, value in attributes_of(module) if module is not None else ():
        for entry, number in numbers_in(value, LONGEST_SIZE_LIST, deepest):
            yield name, entry, number


def is_torch_layer(module: nn.Module | None) -> bool:
    """Whether a module's class is torch's own: what that holds are its sizes, of which nobody else takes multiples."""
    return type(module).__module__.startswith("torch.nn.modules.")


class Form(Enum):
    """How a size follows from a number."""

    EQUAL = "the size is the number"
    EACH = "the size is a multiple of it, with that many places for each, side by side"
    BLOCKS = "the size is a multiple of it, with that many blocks of as many places"
    SHARE = "the number is a multiple of the size"

    def rows(self, rows: Tensor, number: int) -> Tensor | None:
        """What a number counts if a size that counts these rows of labels, int64 [size, m], follows from it in this way:
        int64 [number, …]; None where it cannot."""
        size = len(rows)
        if self is Form.EQUAL:
            return rows if number == size else None
        few, many = sorted((size, number))
        if few < 2 or many == few or many % few or (number > size) is not (self is Form.SHARE):
            return None
        if self is Form.SHARE:
            return rows.repeat(number // size, 1)
        apart = rows.unflatten(0, (number, -1) if self is Form.EACH else (-1, number))
        return (apart if self is Form.EACH else apart.transpose(0, 1)).flatten(1)


MULTIPLES = (Form.EACH, Form.BLOCKS, Form.SHARE)


def numbers_behind(module: nn.Module, attribute: str, entry: Entry, size: int) -> list[tuple[str, Entry]] | None:
    """Numbers of the same value that a module makes this one from when it is copied, by rules of its own, and that must be
    set with it, so that copies have the size, too; None where copies would not have it whatever is set."""
    if is_copied_plainly(module):
        return []
    number = number_at(getattr(module, attribute), entry)
    own = (attribute, entry)
    others = [each for each in attributes_equal_to(number, module) if each != own]
    for behind in ([], *([each] for each in others), others):
        if _outlast_a_copy(module, dict.fromkeys([own, *behind], size)):
            return behind
    return None


def _outlast_a_copy(module: nn.Module, numbers: Numbers) -> bool:
    """Whether a copy of a module that holds these numbers holds them, too."""
    try:
        changed = deep_copy(module)
        for name in dict.fromkeys(name for name, _ in numbers):
            value = getattr(changed, name)
            inside = {entry: number for (own, entry), number in numbers.items() if own == name}
            setattr(changed, name, with_numbers(value, becomes(value, inside)))
        again = deep_copy(changed)
        return all(number_at(getattr(again, name), entry) == number for (name, entry), number in numbers.items())
    except Exception:  # whatever a module does with numbers of which it knows others
        return False
