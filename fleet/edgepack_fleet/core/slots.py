"""Into which stretch of time a report belongs: five minutes, an hour or a day. Pure."""

import math
from dataclasses import dataclass

__all__ = ["DAY", "FINE", "HOUR", "SPANS", "Slot", "coarser", "slot_of"]

FINE, HOUR, DAY = 300, 3600, 86_400
SPANS = (FINE, HOUR, DAY)
"""Seconds."""
AHEAD_S = 300.0
"""Seconds a device's clock may be ahead of ours."""


@dataclass(frozen=True, slots=True)
class Slot:
    """SPAN seconds from START on (Unix seconds, a multiple of SPAN)."""

    span: int
    start: int

    @property
    def end(self) -> int:
        """Unix seconds at which it is over."""
        return self.start + self.span


def slot_of(start: float, end: float, now: float, since: float) -> Slot:
    """Return where a report about START to END (Unix seconds of the device) is counted.

    A report that waited for a month on the device belongs to its own time, not to that of its
    arrival. One that stands for more than five minutes, because the device had to add rows up,
    goes where its middle lies, and is told no finer than it is. A clock that is off (before SINCE,
    when the device enrolled, less a day, or after NOW) says nothing: then NOW counts.
    """
    known = math.isfinite(start) and math.isfinite(end) and start <= end
    if not known or start < since - DAY or end > now + AHEAD_S:
        start = end = now
    span = next((span for span in SPANS if end - start <= span), DAY)
    return Slot(span, int((start + end) / 2 // span) * span)


def coarser(slot: Slot) -> Slot | None:
    """Return the next longer slot that SLOT lies in; None: there is none."""
    if slot.span == DAY:
        return None
    span = SPANS[SPANS.index(slot.span) + 1]
    return Slot(span, slot.start // span * span)
