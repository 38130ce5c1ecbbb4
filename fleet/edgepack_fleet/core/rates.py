"""How often somebody may ask: a bucket of tokens for each. Knows no clock of its own."""

import threading
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["Rates"]


class Rates:
    """Counts by name; any thread may ask.

    Args:
        per_s: Requests a second that each may make for ever; 0: no limit.
        burst: Requests that each may make at once after a pause.
        clock: Seconds that never go back.
        names: How many are remembered; who is forgotten has a full bucket again.
    """

    def __init__(
        self, per_s: float, burst: int, clock: Callable[[], float], names: int = 10_000
    ) -> None:
        self._per_s, self._burst, self._clock, self._names = per_s, burst, clock, names
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """Count one request of NAME; return the seconds it must wait, 0 if it may go on."""
        if not self._per_s:
            return 0.0
        now = self._clock()
        with self._lock:
            left, then = self._left.pop(name, (float(self._burst), now))
            left = min(float(self._burst), left + (now - then) * self._per_s)
            wait = 0.0 if left >= 1 else (1 - left) / self._per_s
            self._left[name] = (left - 1 if not wait else left, now)
            if len(self._left) > self._names:
                self._left.popitem(last=False)
        return wait
