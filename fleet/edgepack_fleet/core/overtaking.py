"""Which rollouts a newer one of the same group has overtaken, and what may be done then. Pure.

To resume such a rollout would send a release after one that goes before it. It asks for nothing;
devices that still have its release can be taken back. One that turns back overtakes nobody: what
its devices go back to may be the very release of the one before.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from edgepack_fleet.core.model import SERVING

__all__ = ["OFFERED", "Line", "offered", "overtaken_by", "overtaken_said"]

OFFERED: dict[str, tuple[str, ...]] = {
    "draft": ("start", "cancel"),
    "awaiting_approval": ("approve", "cancel"),
    "running": ("pause", "revert", "cancel"),
    "paused": ("resume", "revert", "cancel"),
    "reverting": ("cancel",),
    "completed": ("revert",),
}
"""What people are offered to do with a rollout, by its state; the first is what it waits for."""
AHEAD = SERVING | {"paused"}
"""States of a rollout that overtakes."""
AFTERWARDS: dict[str, tuple[str, ...]] = {"paused": ("cancel", "revert")}
"""The same of one that was overtaken, where it differs."""


@dataclass(frozen=True, slots=True)
class Line:
    """A rollout, as far as others go before it."""

    rollout: str
    group: str
    rank: tuple[int, int]
    """Priority and number; no two rollouts have the same."""
    state: str
    release: str


def overtaken_by(mine: Line, others: Iterable[Line]) -> Line | None:
    """Return the rollout of the same group that goes before MINE and gives out its own release."""
    ahead = (
        other
        for other in others
        if other.group == mine.group and other.state in AHEAD and other.rank > mine.rank
    )
    return max(ahead, key=lambda other: other.rank, default=None)


def overtaken_said(first: Line) -> str:
    """Return what is to be said of a paused rollout that FIRST has overtaken."""
    return (
        f"Overtaken by {first.release} ({first.rollout}), so it cannot be resumed; "
        "cancel it to put it away."
    )


def offered(state: str, *, overtaken: bool) -> tuple[str, ...]:
    """Return what people may do with a rollout in STATE, the most sensible first."""
    usual = OFFERED.get(state, ())
    return AFTERWARDS.get(state, usual) if overtaken else usual
