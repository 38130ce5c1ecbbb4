"""Shows another runner what this one answers, off the way of the answers.

Whoever answers only leaves a sample in a slot of one, now and then; a thread of its own sends
it and waits until the other has dealt with it. What is due meanwhile is dropped and counted, so the
other one's slowness costs this one nothing.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edgepack.manifest import Manifest
from edgepack_agent.runner.samples import Given, Shown, TooLargeError, send_hello, send_shown

__all__ = ["Mirror"]

log = logging.getLogger(__name__)
PATIENCE_S = 60.0
"""That the other may take for one sample."""


class Mirror:
    """Shows samples over CHANNEL until it is stopped, or the other end is gone.

    Args:
        channel: A connected stream socket; it is closed in the end.
        manifest: Of the model whose answers are shown.
        per_s: Samples a second, at most.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        channel: socket.socket,
        manifest: Manifest,
        per_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel, self._manifest = channel, manifest
        self._every_s, self._clock = 1 / per_s, clock
        self._next = 0.0
        self._fresh = threading.Condition()
        self._waiting: tuple[Mapping[str, Given], Mapping[str, NDArray[Any]], float] | None = None
        self._dropped = 0
        self._over = False
        threading.Thread(target=self._live, name="mirror", daemon=True).start()

    def offer(
        self, inputs: Mapping[str, Given], outputs: Mapping[str, NDArray[Any]], ms: float
    ) -> None:
        """Show that INPUTS got OUTPUTS in MS milliseconds, if it is time for a sample; at once."""
        now = self._clock()
        if self._over or now < self._next:
            return
        self._next = now + self._every_s
        with self._fresh:
            if self._waiting is None:
                self._waiting = inputs, outputs, ms
                self._fresh.notify()
            else:
                self._dropped += 1

    def stop(self) -> None:
        """Show no more."""
        with self._fresh:
            self._over, self._waiting = True, None
            self._fresh.notify()

    def _live(self) -> None:
        with self._channel:
            try:
                self._channel.settimeout(PATIENCE_S)
                send_hello(self._channel, self._manifest)
                while (shown := self._take()) is not None and self._show(shown):
                    pass
            except OSError as error:
                log.debug("nobody looks any more: %s", error)
        self.stop()

    def _take(self) -> Shown | None:
        """Return the next sample, with what was dropped before it; None: that was all."""
        with self._fresh:
            self._fresh.wait_for(lambda: self._waiting is not None or self._over)
            if self._waiting is None:
                return None
            shown = Shown(*self._waiting, self._dropped)
            self._dropped = 0
        return shown

    def _show(self, shown: Shown) -> bool:
        """Show it and wait until it is dealt with; return whether there is still somebody."""
        try:
            send_shown(self._channel, shown)
        except TooLargeError:
            self._done(shown.dropped + 1)
            return True
        there = bool(self._channel.recv(1))
        self._done(0)
        return there

    def _done(self, dropped: int) -> None:
        """Make room for the next sample: only now, so that one at a time is under way."""
        with self._fresh:
            self._waiting = None
            self._dropped += dropped
