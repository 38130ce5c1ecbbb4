"""The model's turns: one piece of work at a time, whoever came first. Knows no model.

Work is done in the thread that asks, so that an answer changes threads nowhere (ADR 28).
`stalled_s` tells how long the work that has its turn has shown no progress.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Engine", "ExpiredError", "QueueFullError"]

T = TypeVar("T")


class QueueFullError(Exception):
    """As much work is waiting as may."""


class ExpiredError(Exception):
    """The work waited past its deadline and was not begun."""


class Engine:
    """A lock that is fair, bounded and watched.

    A plain lock would go to whoever is quickest, which is a camera that has just let go of it.

    Args:
        limit: Work that may wait.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._busy = False
        self._progress = 0.0

    def run(self, work: Callable[[], T], within_s: float) -> T:
        """Return what WORK returns, which is begun within WITHIN_S seconds or not at all.

        Raises:
            QueueFullError: too much is waiting.
            ExpiredError: its turn did not come in time.
        """
        self._enter(within_s)
        try:
            return work()
        finally:
            self._leave()

    def progressed(self) -> None:
        """Note that long work has come a step further; to be called by the work itself."""
        self._progress = time.monotonic()

    @property
    def waiting(self) -> int:
        """How much work waits."""
        return len(self._waiting)

    @property
    def stalled_s(self) -> float:
        """Seconds since the work that has its turn showed progress; 0 if there is none."""
        return time.monotonic() - self._progress if self._busy else 0.0

    def _enter(self, within_s: float) -> None:
        with self._guard:
            if not self._busy:
                self.progressed()
                self._busy = True
                return
            if len(self._waiting) >= self._limit:
                raise QueueFullError
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if not turn.acquire(timeout=-1 if within_s == math.inf else within_s):
            self._give_up(turn)

    def _give_up(self, turn: threading.Lock) -> None:
        with self._guard:
            if turn in self._waiting:
                self._waiting.remove(turn)
                raise ExpiredError
        # It came in the very moment: then it is ours, late by nothing.

    def _leave(self) -> None:
        with self._guard:
            self.progressed()
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._busy = False
