"""Waits for what `core.pace` says, and stops a download that may not go on. Moves no bytes.

One `Cap` for the whole agent: two downloads share it. One `Pacer` per download: every source asks
it before it asks for bytes, tells it what came, and lets it look while it waits.
"""

import threading
import time
from collections.abc import Callable

from edgepack.errors import EdgepackError, UnreachableError
from edgepack_agent.core.pace import Bucket, Limits, Watch

__all__ = ["LOOK_S", "Cap", "Pacer"]

Clock = Callable[[], float]
LOOK_S = 0.25
"""The longest wait without a look at whether the download may go on."""
CHECK_S = 5.0
"""Seconds between two looks at the network."""


class Cap:
    """The bandwidth cap.

    Args:
        rate: Bytes per second; None: no cap.
        clock: Monotonic seconds.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        rate: float | None,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self._lock = threading.Lock()
        self._bucket: Bucket | None = None
        self.set(rate)

    def set(self, rate: float | None) -> None:
        """Let RATE bytes per second come from now on; None: any number."""
        with self._lock:
            self._bucket = Bucket.full(rate, self.clock()) if rate else None

    def take(self, count: int) -> float:
        """Return the seconds to wait before COUNT bytes may be asked for; they are taken."""
        with self._lock:
            if self._bucket is None:
                return 0.0
            self._bucket, wait_s = self._bucket.take(count, self.clock())
        return wait_s


class Pacer:
    """What one download may do.

    Args:
        limits: What it has to keep up.
        cap: What it must not exceed.
        cancelled: Says whether it is to stop.
        allowed: Raises if the network must not be used (any more); looked at now and then.
    """

    def __init__(
        self,
        limits: Limits,
        cap: Cap,
        cancelled: Callable[[], bool] = lambda: False,
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        self._limits, self._cap = limits, cap
        self._cancelled, self._allowed = cancelled, allowed
        self._watch = Watch.begin(cap.clock())
        self._checked = float("-inf")

    def begin(self) -> None:
        """Begin with a source: what was before does not count against it."""
        self._watch = Watch.begin(self._cap.clock())
        self.look()

    def now(self) -> float:
        """Return the time, in monotonic seconds."""
        return self._cap.clock()

    def ask(self, count: int) -> None:
        """Wait until COUNT bytes may be asked for.

        Raises:
            EdgepackError: the download may not go on, as `look`.
        """
        left = self._cap.take(count)
        while left > 0:
            self.look(judge=False)
            pause = min(left, LOOK_S)
            before = self._cap.clock()
            self._cap.sleep(pause)
            left -= pause
            self._watch = self._watch.paused(self._cap.clock() - before)

    def arrived(self, count: int) -> None:
        """Note COUNT bytes that have come."""
        self._watch = self._watch.arrived(count, self._cap.clock())

    def look(self, *, judge: bool = True) -> None:
        """Check that the download may go on.

        Raises:
            UnreachableError: it stands still (reason `stalled`) or is slower than it may be
                (`too_slow`).
            EdgepackError: it is cancelled (`cancelled`), or the network must not be used.
        """
        if self._cancelled():
            raise EdgepackError("the download was cancelled", reason="cancelled")
        now = self._cap.clock()
        if now - self._checked >= CHECK_S:
            self._checked = now
            self._allowed()
        if judge:
            self._judge(now)

    def _judge(self, now: float) -> None:
        self._watch, trouble = self._watch.judge(self._limits, now)
        if trouble == "stalled":
            raise UnreachableError(
                "the download stands still",
                why=f"nothing came for {self._limits.stall_s:g} s",
                reason="stalled",
            )
        if trouble:
            raise UnreachableError(
                "the download is too slow",
                why=f"less than {self._limits.min_rate:g} bytes per second"
                f" over {self._limits.slow_s:g} s",
                fix="look at the link; `transfer.min_kbps` is the limit",
                reason="too_slow",
            )
