"""Where a size may be written: whole numbers among the attributes of modules near the op that took it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from zerogate.groups.limits import LONGEST_SIZE_LIST


def modules_near(path: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of a module, of all modules around it from the inside out, and of those that it holds itself.

    The last because a module's methods can be called without its forward, by the module that holds it.
    """
    parts = path.split(".") if path else []
    around = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
    return around + [f"{path}.{name}".lstrip(".") for name, _ in modules[path].named_children()]


def attributes_equal_to(size: int, module: nn.Module | None) -> list[tuple[str, int | None]]:
    """Attributes of a module that are this number, with the place in them where they are tuples or lists."""
    equal: list[tuple[str, int | None]] = []
    for name, value in vars(module).items() if module is not None else ():
        if type(value) is int and value == size:
            equal.append((name, None))
        elif isinstance(value, (tuple, list)) and 0 < len(value) <= LONGEST_SIZE_LIST:
            equal += [(name, i) for i, x in enumerate(value) if type(x) is int and x == size]
    return equal
