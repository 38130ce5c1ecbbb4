"""How many bytes telemetry may take a day, over restarts. Sends nothing and keeps no rows.

Days are those of the device's clock, in UTC. What a day has taken is kept by day: a clock that is
set back and forth opens no day twice.
"""

import time
from collections.abc import Callable
from typing import Any

from edgepack_agent.adapters.outbox import Outbox

__all__ = ["Allowance"]

DAY_S = 86400
KB = 1000


class Allowance:
    """What may still be sent.

    Args:
        outbox: Where it is kept.
        max_kb: Thousands of bytes a day; None: any number.
        say: Sends a payload about a kind; False: the link is down.
        wall: Unix seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        max_kb: float | None,
        say: Callable[[str, bytes], bool],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._outbox, self._say, self._wall = outbox, say, wall
        self.limit(max_kb)

    def limit(self, max_kb: float | None) -> None:
        """Let a day take MAX_KB thousands of bytes from now on; None: any number."""
        self._max = None if max_kb is None else max_kb * KB

    def batches(self) -> int | None:
        """Return how many batches of telemetry may be sent now; None: any number."""
        if self._max is None:
            return None
        return 1 if self._outbox.spent(self._today()) < self._max else 0

    def say(self, kind: str, payload: bytes) -> bool:
        """Send PAYLOAD about KIND, and count it if it is telemetry; return whether it went."""
        if self._max is None or kind != "tele":
            return self._say(kind, payload)
        # First: a power cut in between must not make room for more.
        today = self._today()
        self._outbox.spend(today, len(payload))
        went = self._say(kind, payload)
        if not went:
            self._outbox.spend(today, -len(payload))
        return went

    def describe(self) -> dict[str, Any] | None:
        """Return how much of today is used, for `status`; None: there is no limit."""
        if self._max is None:
            return None
        spent = self._outbox.spent(self._today())
        return {
            "max_kb_per_day": self._max / KB,
            "today_kb": round(spent / KB, 1),
            "waits": spent >= self._max,
        }

    def _today(self) -> int:
        return int(self._wall() // DAY_S)
