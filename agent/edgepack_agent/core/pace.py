"""How fast a download may go and has to go. Pure: the clock is passed in, nothing waits here.

`Bucket` keeps to a cap, `Window` keeps what is asked for small on a slow link, so that a word of
the fleet is never behind minutes of content, and `Watch` tells a download that is slow on purpose.
"""

from dataclasses import dataclass, replace

__all__ = ["Bucket", "Limits", "Watch", "Window"]

FAST_S, SLOW_S = 0.5, 2.0
"""An answer within the one lets the window grow; one after the other halves it."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: RATE bytes more every second, BURST at once; what is owed is waited for."""

    rate: float
    burst: float
    level: float
    at: float

    @classmethod
    def full(cls, rate: float, now: float) -> "Bucket":
        """Return a bucket for RATE bytes per second that lets a second's worth through at once."""
        return cls(rate, rate, rate, now)

    def take(self, count: int, now: float) -> tuple["Bucket", float]:
        """Return the bucket after COUNT bytes, and the seconds to wait before they may come."""
        gained = self.rate * max(0.0, now - self.at)
        level = min(self.burst, self.level + gained) - count
        return replace(self, level=level, at=max(now, self.at)), max(0.0, -level / self.rate)


@dataclass(frozen=True, slots=True)
class Window:
    """Blocks that may be asked for and not be here: grows while answers come soon.

    A link that takes long for one block is never asked for two at a time.
    """

    size: int
    largest: int

    def after(self, took_s: float) -> "Window":
        """Return the window after a block that came TOOK_S after it was asked for."""
        if took_s <= FAST_S:
            return replace(self, size=min(self.largest, self.size + 1))
        if took_s > SLOW_S:
            return replace(self, size=max(1, self.size // 2))
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """What a download has to keep up.

    Attributes:
        min_rate: Bytes per second, on average over `slow_s`.
        slow_s: Seconds over which that is judged.
        stall_s: Seconds without a byte after which it stands still.
    """

    min_rate: float
    slow_s: float
    stall_s: float


@dataclass(frozen=True, slots=True)
class Watch:
    """How a download has been doing since `since`."""

    since: float
    last: float
    count: int = 0

    @classmethod
    def begin(cls, now: float) -> "Watch":
        """Return the watch over a download that begins NOW."""
        return cls(now, now)

    def arrived(self, count: int, now: float) -> "Watch":
        """Return the watch after COUNT bytes have come."""
        return replace(self, last=now, count=self.count + count)

    def paused(self, seconds: float) -> "Watch":
        """Return the watch after SECONDS in which nothing was asked for: they do not count."""
        return replace(self, since=self.since + seconds, last=self.last + seconds)

    def judge(self, limits: Limits, now: float) -> tuple["Watch", str]:
        """Return the watch from now on, and what is wrong: `stalled`, `too_slow` or nothing."""
        if now - self.last >= limits.stall_s:
            return self, "stalled"
        seconds = now - self.since
        if seconds < limits.slow_s:
            return self, ""
        if self.count < limits.min_rate * seconds:
            return self, "too_slow"
        return replace(self, since=now, count=0), ""
