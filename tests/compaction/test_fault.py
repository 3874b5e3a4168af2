"""Which of many parts fail together: as many tries as halving needs, and a set of which nothing can be left out."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from zerogate.compaction.fault import smallest_failing


@given(st.integers(1, 24), st.data())
def test_a_set_that_must_be_together_is_found_among_others(parts: int, data: st.DataObject) -> None:
    together = data.draw(st.sets(st.integers(0, parts - 1), min_size=1, max_size=3))
    assert set(smallest_failing(range(parts), lambda some: together <= set(some))) == together


@given(st.integers(1, 200), st.data())
def test_a_single_part_takes_twice_as_many_tries_as_there_are_halvings(parts: int, data: st.DataObject) -> None:
    fault, tries = data.draw(st.integers(0, parts - 1)), []

    def fails(some: Sequence[int]) -> bool:
        tries.append(some)
        return fault in some

    assert smallest_failing(range(parts), fails) == [fault]
    assert len(tries) <= 2 * parts.bit_length()


def test_the_search_ends_where_every_part_is_needed() -> None:
    tries = []
    assert smallest_failing(range(500), lambda some: bool(tries.append(some)) or len(some) == 500) == [*range(500)]  # type: ignore[func-returns-value]
    assert len(tries) <= 150
