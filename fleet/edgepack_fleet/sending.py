"""The thread that answers requests for metadata and content, a few blocks at a time.

Metadata goes before content and every device gets its turn (see `core.turns`), so neither a flood
nor a large model keeps others waiting. What has no room is acknowledged and forgotten: the device
asks again.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from edgepack import topics
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.core.turns import Turn, Turns

__all__ = ["Sender"]

PER_DEVICE = 64
IN_ALL = 500
"""Requests that may wait; well below what the broker sends without an acknowledgement."""
AT_A_TIME = 8
"""Blocks of one device before the next one has its turn."""

log = logging.getLogger(__name__)
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class _Answer(Generic[P]):
    message: Incoming
    pieces: Iterator[P]


class Sender(Generic[P]):
    """Answers requests in a thread of its own.

    Args:
        answer: Knows the answers, piece by piece.
        send: Sends a piece, when there is room for it; only this thread calls it.
        acknowledge: Tells the broker that a request is done with.
        busy: Called for every request that has to be forgotten.
    """

    def __init__(
        self,
        answer: Callable[[Incoming], Iterator[P]],
        send: Callable[[P], None],
        acknowledge: Callable[[Incoming], None],
        busy: Callable[[], None],
    ) -> None:
        self._answer, self._send = answer, send
        self._acknowledge, self._busy = acknowledge, busy
        self._turns: Turns[_Answer[P]] = Turns(PER_DEVICE, IN_ALL)
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="fleet-sender", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End after the piece that is being sent."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)

    def take(self, message: Incoming) -> None:
        """Take a request from the network thread; never waits."""
        uplink = topics.parse_up(message.topic)
        if uplink is None:
            return
        answer = _Answer(message, self._answer(message))
        with self._changed:
            gone = self._turns.put(uplink.device, answer, small=uplink.kind == "meta")
            self._changed.notify_all()
        for refused in gone:
            self._busy()
            self._acknowledge(refused.message)

    def _run(self) -> None:
        while (turn := self._next()) is not None:
            try:
                done = self._go_on(turn)
            except Exception:  # one request must not stop the others
                log.exception("a request on %s could not be answered", turn.item.message.topic)
                done = True
            if done:
                self._acknowledge(turn.item.message)
            else:
                with self._changed:
                    self._turns.back(turn)

    def _go_on(self, turn: Turn[_Answer[P]]) -> bool:
        """Send some pieces of the answer; return whether that was all of it."""
        sent = 0
        for piece in islice(turn.item.pieces, AT_A_TIME):
            self._send(piece)
            sent += 1
        return sent < AT_A_TIME

    def _next(self) -> Turn[_Answer[P]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._turns))
            return None if self._stopping else self._turns.take()
