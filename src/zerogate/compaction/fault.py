"""Which of many parts are at fault: a smallest set that fails, found by halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_MOST_TRIES = 150
"""So often a part of the set is tried; then what is left of it is taken as it is."""


def smallest_failing(parts: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> list[int]:
    """A set of parts that fails together and of which no single one can be left out, by delta debugging (Zeller and
    Hildebrandt, 2002): the set is split into pieces, and goes on as a piece that fails, or as what is left without a piece;
    where neither fails, into smaller pieces.

    Args:
        parts: a set that fails.
        fails: whether some of the parts fail together.
    """
    tries = 0

    def failing(candidates: list[list[int]]) -> list[int] | None:
        nonlocal tries
        for candidate in candidates:
            tries += 1
            if tries <= _MOST_TRIES and fails(candidate):
                return candidate
        return None

    rest, pieces = [*parts], 2
    while len(rest) > 1 and tries < _MOST_TRIES:
        size = -(-len(rest) // pieces)
        split = [rest[i : i + size] for i in range(0, len(rest), size)]
        smaller = failing(split)
        if smaller is not None:
            rest, pieces = smaller, 2
            continue
        without = failing([[x for x in rest if x not in piece] for piece in split]) if len(split) > 2 else None
        if without is not None:
            rest, pieces = without, max(pieces - 1, 2)
        elif size == 1:
            break
        else:
            pieces = min(2 * pieces, len(rest))
    return rest
