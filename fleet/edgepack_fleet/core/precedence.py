"""Which of several rollouts a device follows: one, whatever groups it is in.

Rollouts stand in one order, by priority, then by age, the newer one first. A device follows the
first that covers it, as long as that one serves or has given it a job. A rollout of a group the
device has left has no say any more, unless the device is at work for it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Claim", "follows"]

OPEN = frozenset({"QUEUED", "IN_PROGRESS"})


@dataclass(frozen=True, slots=True)
class Claim:
    """What a rollout would have a device do."""

    rollout: str
    group: str
    rank: tuple[int, int]
    """Priority and number; no two rollouts have the same."""
    serves: bool
    """Whether it gives the release to every device of its group."""
    release: str = ""


def follows(
    groups: Collection[str], jobs: Mapping[str, str], claims: Iterable[Claim]
) -> Claim | None:
    """Return the rollout that a device follows; None: none.

    Args:
        groups: Those the device is in.
        jobs: Rollout to the status of the device's job in it; those that count.
        claims: Rollouts.
    """
    mine = (claim for claim in claims if _has(claim, groups, jobs.get(claim.rollout)))
    return max(mine, key=lambda claim: claim.rank, default=None)


def _has(claim: Claim, groups: Collection[str], status: str | None) -> bool:
    if claim.group in groups:
        return claim.serves or status is not None
    return status in OPEN
