"""Which numbered rows of a device boot have arrived: no duplicates, known gaps. No storage.

Gaps are ranges: a device that was offline for long adds rows up, and the numbers of those that went
into others are never sent. A row says which numbers it stands for, so that they are not waited for.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MAX_GAPS", "Range", "Stream", "absorb"]

Range = tuple[int, int]
"""First and last number."""
MAX_GAPS = 1000
"""Gaps that are remembered, the newest. A device has 200 rows on the wire, so that a gap further
back is none that could still be filled."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Everything up to `upto` has arrived, but `missing`."""

    upto: int = -1
    missing: tuple[Range, ...] = ()
    """Ascending, apart from each other."""


def absorb(
    stream: Stream, seqs: Iterable[int], gone: Iterable[Range] = ()
) -> tuple[Stream, frozenset[int]]:
    """Return STREAM with SEQS arrived, and those of them that were new.

    Args:
        stream: What has arrived before.
        seqs: Numbers that arrive.
        gone: Numbers that rows of SEQS stand for: they never come, and do not count if they do.
    """
    upto, gaps, fresh = stream.upto, list(stream.missing), set()
    for seq in sorted(set(seqs)):
        if seq > upto:
            if seq > upto + 1:
                gaps.append((upto + 1, seq - 1))
            upto = seq
            fresh.add(seq)
        elif _close(gaps, (seq, seq)):
            fresh.add(seq)
    for first, last in gone:
        _close(gaps, (first, last))
    return Stream(upto, tuple(gaps[-MAX_GAPS:])), frozenset(fresh)


def _close(gaps: list[Range], closed: Range) -> bool:
    """Take the numbers of CLOSED out of GAPS; return whether any were there."""
    first, last = closed
    start = bisect_right(gaps, first, key=lambda gap: gap[0]) - 1
    start += start < 0 or gaps[start][1] < first
    end = start
    left: list[Range] = []
    while end < len(gaps) and gaps[end][0] <= last:
        low, high = gaps[end]
        left += [(low, first - 1)] if low < first else []
        left += [(last + 1, high)] if high > last else []
        end += 1
    gaps[start:end] = left
    return end > start
