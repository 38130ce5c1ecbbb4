"""A page of a device's timeline, as its page shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core import cursors
from edgepack_fleet.core.happenings import Happening, of_entry
from edgepack_fleet.core.timeline import Key, Kind
from edgepack_fleet.timeline import KEY_KINDS, timeline_of

__all__ = ["KINDS", "Story", "story"]

KINDS: tuple[Kind, ...] = get_args(Kind)
STEPS = 40
SORT = "-time"


@dataclass(frozen=True, slots=True)
class Story:
    """One page, newest first."""

    steps: Sequence[Happening]
    older: str | None
    """Cursor of the next page; None: this is the last."""


def story(session: Session, device: DeviceRow, kind: str, after: str) -> Story:
    """Return the page after the cursor AFTER; empty: the newest.

    Args:
        session: A database session.
        device: Its row.
        kind: Only what is of that kind; empty: everything.
        after: A cursor, as the REST interface gives and takes them.

    Raises:
        UsageError: AFTER is no cursor of this list (`bad_cursor`).
    """
    key = cast("Key", cursors.unpack(after, SORT, KEY_KINDS)) if after else None
    kinds = [one for one in KINDS if kind in {"", one}]
    found = timeline_of(session, device, key, STEPS + 1, kinds=kinds) if kinds else []
    page = found[:STEPS]
    older = cursors.pack(SORT, page[-1].key) if len(found) > len(page) else None
    return Story([of_entry(entry) for entry in page], older)
