"""Numbered rows: none counted twice, none forgotten."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core.stream import MAX_GAPS, Stream, absorb


def numbers(stream: Stream) -> set[int]:
    """Return what is missing, one by one."""
    return {seq for first, last in stream.missing for seq in range(first, last + 1)}


def test_gaps_are_named_until_they_are_filled() -> None:
    stream, fresh = absorb(Stream(), [0, 1, 4])
    assert (stream, fresh) == (Stream(4, ((2, 3),)), {0, 1, 4})
    stream, fresh = absorb(stream, [4, 3])
    assert (stream, fresh) == (Stream(4, ((2, 2),)), {3})


def test_a_first_batch_that_got_lost_is_missing() -> None:
    assert absorb(Stream(), [2])[0] == Stream(2, ((0, 1),))


def test_a_gap_may_be_as_long_as_it_is() -> None:
    stream, _ = absorb(Stream(), [10**12])
    assert stream.missing == ((0, 10**12 - 1),)
    assert absorb(stream, [3])[1] == {3}


def test_what_another_row_stands_for_is_not_waited_for_and_does_not_count() -> None:
    stream, fresh = absorb(Stream(), [9], gone=[(0, 3), (5, 7)])
    assert (stream, fresh) == (Stream(9, ((4, 4), (8, 8))), {9})
    assert absorb(stream, [2, 4, 6]) == (Stream(9, ((8, 8),)), {4})


def test_a_batch_full_of_gaps_stays_small() -> None:
    tracemalloc.start()
    try:
        stream, fresh = absorb(Stream(), range(0, 4_000_000, 1000))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert len(fresh) == 4000
    assert len(stream.missing) == MAX_GAPS


spans = st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(st.tuples(st.lists(st.integers(0, 60), max_size=12), st.lists(spans, max_size=3))))
def test_every_row_is_new_exactly_once_in_whatever_order(
    batches: list[tuple[list[int], list[tuple[int, int]]]],
) -> None:
    stream, seen, never = Stream(), set[int](), set[int]()
    for batch, gone in batches:
        before = stream.upto
        stream, fresh = absorb(stream, batch, gone)
        # What is beyond the newest number is not missing yet, so it cannot be taken out either.
        assert fresh == {seq for seq in batch if seq not in seen and seq not in never}
        seen |= fresh
        assert stream.upto == max([before, *batch])
        never |= {
            seq
            for first, last in gone
            for seq in range(first, last + 1)
            if seq <= stream.upto and seq not in seen
        }
        assert numbers(stream) == set(range(stream.upto + 1)) - seen - never
        flat = [edge for gap in stream.missing for edge in gap]
        assert flat == sorted(flat)
