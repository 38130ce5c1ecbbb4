"""One thread for all work on the model, behind a bounded queue. Knows no model and no request.

A runtime's call releases the interpreter's lock, so requests are read and answered while the
thread computes. `stalled_s` tells how long the thread has not come back to its queue.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Engine", "ExpiredError", "QueueFullError"]

T = TypeVar("T")
_Job = tuple[Callable[[], Any], Future[Any], float]
_LOOK_UP_S = 0.25


class QueueFullError(Exception):
    """As much work is waiting as the queue holds."""


class ExpiredError(Exception):
    """The work waited past its deadline and was not begun."""


class Engine:
    """A worker thread; a daemon, because a hung runtime must not keep the process alive."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._progress = time.monotonic()
        threading.Thread(target=self._work, name="inference", daemon=True).start()

    def submit(self, work: Callable[[], T], within_s: float) -> Future[T]:
        """Return the future of WORK, which is begun within WITHIN_S seconds or not at all.

        Raises:
            QueueFullError: too much is waiting.
        """
        if self._jobs.qsize() >= self._limit:
            raise QueueFullError
        future: Future[T] = Future()
        self._jobs.put((work, future, time.monotonic() + within_s))
        return future

    def progressed(self) -> None:
        """Note that long work has come a step further; to be called by the work itself."""
        self._progress = time.monotonic()

    @property
    def waiting(self) -> int:
        """How much work waits."""
        return self._jobs.qsize()

    @property
    def stalled_s(self) -> float:
        """Seconds since the thread last showed progress; an idle thread shows it all the time."""
        return time.monotonic() - self._progress

    def _work(self) -> None:
        while True:
            self.progressed()
            try:
                work, future, deadline = self._jobs.get(timeout=_LOOK_UP_S)
            except queue.Empty:
                continue
            if future.set_running_or_notify_cancel():
                _settle(future, work, deadline)


def _settle(future: Future[Any], work: Callable[[], Any], deadline: float) -> None:
    if time.monotonic() > deadline:
        future.set_exception(ExpiredError())
        return
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 - whatever the work raises belongs to who asked
        future.set_exception(error)
    else:
        future.set_result(result)
