"""Which beginnings and ends of sightings are still to be told. Pure.

What a camera sees comes as whole pictures of it, some of which may be lost; what is told is one
beginning and one end for each sighting, whatever was lost, or neither.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from edgepack_agent.core.sightings import Seen, Sighting

__all__ = ["Tiding", "Told", "next_tiding"]


@dataclass(frozen=True, slots=True)
class Told:
    """What has been told of one life."""

    upto: int = 0
    """The highest number whose beginning was."""
    open: tuple[Sighting, ...] = ()
    """Whose end was not."""


@dataclass(frozen=True, slots=True)
class Tiding:
    """What is to be told next, and what has been told then."""

    kind: Literal["new", "end"]
    sighting: Sighting
    told: Told


def next_tiding(told: Told, seen: Seen) -> Tiding | None:
    """Return what is to be told next of SEEN, the newest word of a life; None: nothing."""
    there = {s.number for s in seen.open}
    for known in told.open:
        if known.number not in there:
            rest = tuple(s for s in told.open if s is not known)
            return Tiding("end", _ended(known, seen), Told(told.upto, rest))
    new = [s for s in (*seen.ended, *seen.open) if s.number > told.upto]
    if not new:
        return None
    first = min(new, key=lambda s: s.number)
    begun = msgspec.structs.replace(first, end=None)
    return Tiding("new", begun, Told(first.number, (*told.open, begun)))


def _ended(known: Sighting, seen: Seen) -> Sighting:
    for sighting in seen.ended:
        if sighting.number == known.number:
            return sighting
    return msgspec.structs.replace(known, end=max(known.start, seen.at))
