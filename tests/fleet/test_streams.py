"""Numbered rows: none counted twice, none forgotten."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core.stream import MAX_MISSING, Stream, absorb


def test_gaps_are_named_until_they_are_filled() -> None:
    stream, fresh = absorb(Stream(), [0, 1, 4])
    assert (stream, fresh) == (Stream(4, (2, 3)), {0, 1, 4})
    stream, fresh = absorb(stream, [4, 3])
    assert (stream, fresh) == (Stream(4, (2,)), {3})


def test_a_first_batch_that_got_lost_is_missing() -> None:
    assert absorb(Stream(), [2])[0] == Stream(2, (0, 1))


def test_what_was_thrown_away_long_ago_is_not_asked_for_for_ever() -> None:
    stream, _ = absorb(Stream(), [10**12])
    assert len(stream.missing) == MAX_MISSING
    assert stream.missing[-1] == 10**12 - 1
    assert absorb(stream, [3]) == (stream, frozenset()), "too late; it must not count"


def test_a_batch_full_of_gaps_stays_small() -> None:
    tracemalloc.start()
    try:
        stream, fresh = absorb(Stream(), range(0, 4_000_000, 1000))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert len(fresh) == 4000
    assert len(stream.missing) == MAX_MISSING


@given(st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=12))
def test_every_row_is_new_exactly_once_in_whatever_order(batches: list[list[int]]) -> None:
    stream, seen = Stream(), set[int]()
    for batch in batches:
        stream, fresh = absorb(stream, batch)
        assert fresh == set(batch) - seen
        seen |= fresh
        assert stream.upto == max(seen, default=-1)
        assert set(stream.missing) == set(range(stream.upto + 1)) - seen
