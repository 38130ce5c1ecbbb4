"""Who may ask, and how often. Over the unix socket the file system decides; over TCP, a token.

Answers no request itself.
"""

import hmac
import math
import threading
import time
from collections.abc import Callable

from edgepack_agent.runner.protocol import RequestError

__all__ = ["Gate"]

BURST_S = 1.0
"""Requests of so long may come at once."""


class Gate:
    """Asks for a token and counts requests.

    Args:
        token: What requests over TCP must bear; None: nothing.
        max_per_s: Requests a second over each kind of socket; None: any number.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        token: str | None = None,
        max_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = token.encode() if token else None
        self._buckets = {kind: _Bucket(max_per_s, clock) for kind in (True, False)}
        self._strangers = _Bucket(max_per_s, clock)

    def admit(self, authorization: str, *, over_tcp: bool) -> None:
        """Let a request through, or not.

        Args:
            authorization: The header of that name.
            over_tcp: Whether it did not come over the unix socket.

        Raises:
            RequestError: 401, the token is wrong or missing; 429, there are too many.
        """
        if over_tcp and not self._is_known(authorization):
            # Of their own, so that guessing is limited and takes nothing from who has the token.
            self._strangers.take()
            raise RequestError(401, "over TCP, this API asks for its token", "unauthorized")
        self._buckets[over_tcp].take()

    def _is_known(self, authorization: str) -> bool:
        if self._token is None:
            return True
        kind, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        return right and kind.lower() == "bearer"


class _Bucket:
    """A token bucket that refills at RATE a second."""

    def __init__(self, rate: float | None, clock: Callable[[], float]) -> None:
        self._rate, self._clock = rate or math.inf, clock
        self._most = max(1.0, self._rate * BURST_S)
        self._left, self._at = self._most, clock()
        self._guard = threading.Lock()

    def take(self) -> None:
        if self._rate == math.inf:
            return
        with self._guard:
            now = self._clock()
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                wait = (1 - self._left) / self._rate
                raise RequestError(429, "too many requests", "rate_limited", retry_after_s=wait)
            self._left -= 1
