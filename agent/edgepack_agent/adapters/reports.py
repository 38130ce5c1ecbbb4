"""From beats and events to the outbox, and from there to the fleet. Counts nothing itself.

Rows are made per bundle and interval. Sending is tried when there is something new, when an
acknowledgement comes and at every tick; the outbox knows what is due.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from edgepack.errors import IntegrityError
from edgepack.messages import Ack, Inventory, decode, encode_batch
from edgepack_agent.adapters.outbox import Outbox
from edgepack_agent.core.effects import Publish
from edgepack_agent.core.state import Slot
from edgepack_agent.core.telemetry import Level, Tally

__all__ = ["Reports"]


class Reports:
    """What this device has to tell.

    Args:
        outbox: Where it waits.
        level: How much of inference is told.
        say: Sends a payload about a kind; False: the link is down.
        wall: Unix seconds.
        batches: Returns how many batches of telemetry may be sent now; None: any number.
    """

    def __init__(
        self,
        outbox: Outbox,
        level: Level,
        say: Callable[[str, bytes], bool],
        wall: Callable[[], float] = time.time,
        batches: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._outbox, self._level, self._say, self._wall = outbox, level, say, wall
        self._batches = batches
        self._tallies: dict[str, Tally] = {}
        self._inventory: Inventory | None = None

    def tell(self, level: Level) -> None:
        """Tell as much as LEVEL says from now on; what was counted for more is dropped."""
        if level == "off":
            self._tallies.clear()
        self._level = level

    def beat(self, slot: Slot, beat: Mapping[str, Any]) -> None:
        """Count a heartbeat of the runner of SLOT."""
        model = slot.model
        if self._level == "off":
            return
        tally = self._tallies.get(model.digest)
        if tally is None:
            tally = Tally(model.release, model.digest, self._wall())
            self._tallies[model.digest] = tally
        tally.add(beat)

    def event(self, event: Publish) -> None:
        """Keep EVENT for the fleet."""
        self._outbox.add_event(
            self._wall(),
            event.type,
            once=event.once,
            bundle=event.bundle,
            digest=event.digest,
            reason=event.reason,
            detail=event.detail,
        )

    def noticed(self, event: Publish) -> None:
        """Keep EVENT, which was learnt by watching inference, if the level lets that be told."""
        if self._level != "off":
            self.event(event)

    def inventory(self, inventory: Inventory) -> None:
        """Tell what this device is, if that has changed; free space alone is no change."""
        settled = msgspec.structs.replace(inventory, disk_free_mb=0)
        if settled != self._inventory:
            self._inventory = settled
            self.event(Publish("inventory", None, None, "", msgspec.to_builtins(inventory)))

    def close_interval(self) -> None:
        """Make a row of what was counted, per bundle."""
        end = self._wall()
        for digest, tally in list(self._tallies.items()):
            row = partial(tally.row, self._outbox.boot, end=end, level=self._level)
            self._outbox.add_telemetry(row)
            # Only now: what could not be written goes on being counted.
            del self._tallies[digest]

    def acknowledged(self, payload: bytes) -> None:
        """Let go of what the fleet has."""
        try:
            self._outbox.acknowledge(decode(payload, Ack))
        except IntegrityError:
            return
        self.send()

    def link_lost(self) -> None:
        """Forget what was on the wire: it is sent again."""
        self._outbox.link_lost()

    def carry(self, say: Callable[[str, bytes], bool]) -> None:
        """Say all that waits to SAY, which is not the link."""
        self.close_interval()
        for batch in self._outbox.everything():
            say(batch.kind, encode_batch(batch.rows))

    def send(self) -> None:
        """Send what is due; without a link it stays due."""
        for batch in self._outbox.take(self._batches()):
            if not self._say(batch.kind, encode_batch(batch.rows)):
                self._outbox.link_lost()
                return
