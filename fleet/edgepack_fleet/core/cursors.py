"""Where a page of a list ended, as one opaque word. Knows no database."""

import base64
import json
import math
from collections.abc import Sequence

from edgepack.errors import UsageError

__all__ = ["Key", "pack", "unpack"]

Key = tuple[str | int | float, ...]
"""What a list is ordered by, in the order in which it counts; the last part is unique."""
LARGEST = 2**53


def pack(sort: str, key: Key) -> str:
    """Return the cursor after the row with KEY in a list ordered by SORT."""
    text = json.dumps([sort, *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def unpack(cursor: str, sort: str, kinds: Sequence[type]) -> Key:
    """Return the key in CURSOR, which must be of a list ordered by SORT with keys of KINDS.

    Raises:
        UsageError: it is not (`bad_cursor`).
    """
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        known, *key = found
        fits = known == sort and len(key) == len(kinds)
        if fits and all(_is(part, kind) for part, kind in zip(key, kinds, strict=True)):
            return tuple(key)
    except (ValueError, TypeError, RecursionError):
        pass
    raise UsageError(
        "this cursor is not of this list",
        why="a cursor belongs to one list in one order",
        fix="begin again without it",
        reason="bad_cursor",
    )


def _is(part: object, kind: type) -> bool:
    """Say whether PART is a KIND that every database takes."""
    if isinstance(part, str):
        part.encode()
        return kind is str
    if isinstance(part, bool) or not isinstance(part, int | float):
        return False
    return kind in {type(part), float} and math.isfinite(part) and abs(part) <= LARGEST
