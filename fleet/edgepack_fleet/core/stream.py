"""Which numbered rows of a device boot have arrived: no duplicates, known gaps. No storage."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MAX_MISSING", "Stream", "absorb"]

MAX_MISSING = 1000
"""Gaps an acknowledgement names. The device sends oldest first, so what is missing further back
than this was thrown away there; it is not asked for again."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Everything up to `upto` has arrived, but `missing`."""

    upto: int = -1
    missing: tuple[int, ...] = ()
    """Ascending."""


def absorb(stream: Stream, seqs: Iterable[int]) -> tuple[Stream, frozenset[int]]:
    """Return STREAM with SEQS arrived, and those of them that were new."""
    upto, missing, fresh = stream.upto, set(stream.missing), set()
    for seq in sorted(seqs):
        if seq > upto:
            missing.update(range(max(upto + 1, seq - MAX_MISSING), seq))
            if len(missing) > 2 * MAX_MISSING:  # a batch full of gaps must not fill the memory
                missing = set(sorted(missing)[-MAX_MISSING:])
            upto = seq
        elif seq in missing:
            missing.discard(seq)
        else:
            continue
        fresh.add(seq)
    return Stream(upto, tuple(sorted(missing)[-MAX_MISSING:])), frozenset(fresh)
