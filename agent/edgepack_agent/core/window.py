"""When updates are welcome: maintenance windows in local time. A pure rule, the clock passed in.

A window begins on each of its days at `from` and ends at the next `to`, the day after if that is
not later. Both are times on the wall of the named zone, so that a window keeps its hours when the
clocks change. A time in the hour that is left out comes an hour later; one in the hour that comes
twice is the first of the two for a begin and the second for an end.
"""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from edgepack.errors import UsageError
from edgepack.messages import DAYS, Window

__all__ = ["closing", "opening", "zone"]

HORIZON_D = 16
"""Days to look ahead: a weekly window may be left out once, when the clocks change."""


def opening(windows: Sequence[Window], now: float) -> float | None:
    """Return the Unix time from which one of WINDOWS is open: NOW if one is; None: never.

    Without windows it is always time.

    Raises:
        UsageError: a time zone is not known here (reason `no_time_zone`).
    """
    if not windows:
        return now
    spans = [span for window in windows for span in _spans(window, now)]
    return min((max(start, now) for start, end in spans if end > now), default=None)


def closing(windows: Sequence[Window], now: float) -> float | None:
    """Return the Unix time at which the last open one of WINDOWS closes; None: none is open.

    Raises:
        UsageError: as `opening`.
    """
    spans = [span for window in windows for span in _spans(window, now)]
    return max((end for start, end in spans if start <= now < end), default=None)


def zone(name: str) -> tzinfo:
    """Return the time zone NAME of the IANA list.

    Raises:
        UsageError: it is not known here (reason `no_time_zone`).
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"the time zone {name!r} is not known here",
            why="it is misspelt, or this device has no time zone data",
            fix="install them (`apt install tzdata` or `pip install tzdata`), or use UTC",
            reason="no_time_zone",
        ) from error


def _spans(window: Window, now: float) -> list[tuple[float, float]]:
    """Return begin and end of WINDOW around and after NOW, Unix seconds."""
    local = zone(window.zone)
    try:
        today = datetime.fromtimestamp(now, local).date()
        days = [today + timedelta(days=n) for n in range(-2, HORIZON_D)]
    except (OverflowError, ValueError, OSError):
        return []  # a clock that is off by millennia: no window until it is set
    found = [_span(window, day, local) for day in days if DAYS[day.weekday()] in window.days]
    return [(start, end) for start, end in found if start < end]


def _span(window: Window, day: date, local: tzinfo) -> tuple[float, float]:
    start, end = time.fromisoformat(window.start), time.fromisoformat(window.end)
    last = day if end > start else day + timedelta(days=1)
    ends = datetime.combine(last, end, local)
    return (
        datetime.combine(day, start, local).timestamp(),
        max(ends.timestamp(), ends.replace(fold=1).timestamp()),
    )
