"""Which way bytes come: HTTPS or MQTT, one after the other, under one set of limits.

A download that one way fails goes on the other, from the very block; the way that failed comes
last from then on. Nothing is fetched over a metered link unless that is allowed.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from edgepack.chunks import CHUNK_SIZE
from edgepack.errors import IntegrityError, UnreachableError
from edgepack_agent.adapters.download import BlobSource, Cancelled
from edgepack_agent.adapters.network import Metering
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.core.pace import Limits

__all__ = ["OpenRoute", "Route", "Way"]

log = logging.getLogger(__name__)
Via = Literal["auto", "mqtt", "https"]
_OTHER_WAY = frozenset({"blob_missing", "bad_block"})
"""What one way may get wrong and the other right, beside not answering."""


class Way(Protocol):
    """A way for bytes to come."""

    def blocks(
        self, sha256: str, size: int, start: int, count: int, pacer: Pacer
    ) -> Iterator[bytes]:
        """Yield blocks as a `BlobSource` does, as PACER allows."""
        ...


class Route:
    """Opens downloads.

    Args:
        ways: By name.
        via: Which of them may be used; `auto`: all.
        ready: Says whether HTTPS can be tried.
        metering: Says whether the network may be used.
        limits: What a download has to keep up.
        cap: What all of them together must not exceed.
    """

    def __init__(
        self,
        ways: dict[str, Way],
        via: Via,
        ready: Callable[[], bool],
        metering: Metering,
        limits: Limits,
        cap: Cap,
    ) -> None:
        self._ways, self._via, self._ready = ways, via, ready
        self._metering, self._limits, self._cap = metering, limits, cap

    def limit(self, limits: Limits, rate: float | None) -> None:
        """Hold downloads from now on to LIMITS, and all of them to RATE bytes a second."""
        self._limits = limits
        self._cap.set(rate)

    def open(self, cancelled: Cancelled) -> BlobSource:
        """Return where one download's blocks come from; nothing is asked for yet."""
        self._metering.begin()
        pacer = Pacer(self._limits, self._cap, cancelled, self._metering.check)
        return OpenRoute(self._ways, self._order(), pacer)

    def _order(self) -> list[str]:
        if self._via != "auto":
            return [self._via]
        return ["https", "mqtt"] if self._ready() else ["mqtt"]


class OpenRoute:
    """The ways of one download, the one to try first in front."""

    def __init__(self, ways: dict[str, Way], order: list[str], pacer: Pacer) -> None:
        self._ways, self._order, self._pacer = ways, order, pacer
        self._given: tuple[str, int] = "", 0
        """Digest of the blob, and the block after the last one that was given of it."""

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        """Yield COUNT blocks of a blob from block START, in order.

        Raises:
            UnreachableError: no way works.
            IntegrityError: no way has the blob (reason `blob_missing`).
            EdgepackError: it is cancelled, or the link is metered (reason `metered`).
        """
        if self._given[0] == sha256 and start < self._given[1]:
            # What came was wrong; another way may do better.
            self._last(self._order[0])
        at, end = start, start + count
        names = self._for(size)
        for name in names:
            try:
                for block in self._ways[name].blocks(sha256, size, at, end - at, self._pacer):
                    at += 1
                    self._given = sha256, at
                    yield block
                return
            except (UnreachableError, IntegrityError) as error:
                if isinstance(error, IntegrityError) and error.reason not in _OTHER_WAY:
                    raise
                self._last(name)
                if name == names[-1]:
                    raise
                log.info("%s: %s (%s); going on another way", name, error, error.why)

    def _for(self, size: int) -> list[str]:
        """Return the order for a blob: for a small one, a connection is not worth its while."""
        return sorted(self._order, key="https".__eq__) if size <= CHUNK_SIZE else list(self._order)

    def _last(self, name: str) -> None:
        self._order.remove(name)
        self._order.append(name)
