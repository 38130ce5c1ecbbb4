"""What a script that waits for a rollout is told: whether it ended, and how well. Asks nobody."""

from collections.abc import Sequence
from typing import Literal

from edgepack_fleet.core.model import FAILURES

__all__ = ["Outcome", "outcome"]

Outcome = Literal["waits", "done", "partly", "stopped"]
STOPPED = frozenset({"paused", "reverted", "cancelled"})


def outcome(state: str, statuses: Sequence[str]) -> Outcome:
    """Return how a rollout in STATE stands, given the STATUSES of its devices' jobs.

    A paused rollout counts as ended: it goes on only if a person says so. A device that was never
    reached is no failure; it gets the release on its return.
    """
    if state in STOPPED:
        return "stopped"
    if state != "completed":
        return "waits"
    return "partly" if FAILURES & set(statuses) else "done"
