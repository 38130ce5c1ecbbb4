"""Reports of a device until the fleet has committed them: released by its acknowledgement only.

Lives in memory and otherwise keeps to the rules of a real device's outbox: numbers count up
within a boot, what is not acknowledged is sent again, and nothing counts twice. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from edgepack.messages import Ack, Event, Telemetry

__all__ = ["Outbox"]

BATCH = 50
Kind = Literal["tele", "evt"]


@dataclass(slots=True)
class _Row:
    kind: Kind
    message: Telemetry | Event
    sent: float | None = None
    """When it was last said; None: not on this connection."""
    said: bool = False


@dataclass(slots=True)
class Outbox:
    """Rows of one device, by boot and number.

    Args:
        patience_s: Seconds after which what was not acknowledged is sent again.
    """

    patience_s: float = 20.0
    rows: dict[tuple[str, int], _Row] = field(default_factory=dict)
    added: int = 0
    again: int = 0
    """Rows that were sent once more."""

    def add(self, kind: Kind, message: Telemetry | Event) -> None:
        """Keep MESSAGE until it is acknowledged."""
        self.rows[message.boot, message.seq] = _Row(kind, message)
        self.added += 1

    def due(self, now: float) -> Iterator[tuple[Kind, list[Telemetry | Event]]]:
        """Yield batches of what is to be said NOW, a kind each, and hold them to be said."""
        waiting = [
            row
            for row in self.rows.values()
            if row.sent is None or now - row.sent > self.patience_s
        ]
        kinds: tuple[Kind, ...] = ("evt", "tele")
        for kind in kinds:
            batch = [row for row in waiting if row.kind == kind][:BATCH]
            if batch:
                for row in batch:
                    self.again += row.said
                    row.sent, row.said = now, True
                yield kind, [row.message for row in batch]

    def connected(self) -> None:
        """Say everything again: what the last connection took along is not known."""
        for row in self.rows.values():
            row.sent = None

    def release(self, ack: Ack) -> list[Telemetry | Event]:
        """Let go of what ACK says is committed, and return that."""
        gone = [
            key for key in self.rows if key[0] == ack.boot and key[1] <= ack.upto
            and not any(first <= key[1] <= last for first, last in ack.missing)
        ]  # fmt: skip
        return [self.rows.pop(key).message for key in gone]
