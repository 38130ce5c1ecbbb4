"""Which of several rollouts a device follows: one, whatever groups it is in.

Rollouts stand in one order, by priority, then by age, the newer one first. A device follows the
first that covers it, as long as that one serves or has given it a job. A rollout of a group the
device has left has no say any more, unless the device is at work for it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from edgepack_fleet.core.model import FAILURES

__all__ = ["Claim", "Given", "desired", "follows"]

OPEN = frozenset({"QUEUED", "IN_PROGRESS"})
SPENT = FAILURES | {"CANCELED"}
"""Jobs that came to nothing: a device keeps what it had."""


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


@dataclass(frozen=True, slots=True)
class Given:
    """The newest job of a device in a rollout."""

    status: str
    release: str


def desired(
    groups: Collection[str], given: Mapping[str, Given], claims: Iterable[Claim]
) -> str | None:
    """Return what a device shall run: what the rollout it follows gave it, or will give it.

    A device that follows none keeps what it was given last; None: it was given nothing.

    Args:
        groups: Those the device is in.
        given: By rollout, that of the newest rollout last.
        claims: Rollouts.
    """
    standing = {rollout: job for rollout, job in given.items() if job.status not in SPENT}
    first = follows(groups, {rollout: job.status for rollout, job in standing.items()}, claims)
    if first is not None:
        mine = standing.get(first.rollout)
        return mine.release if mine else first.release
    return next((job.release for job in reversed(standing.values())), None)


def _has(claim: Claim, groups: Collection[str], status: str | None) -> bool:
    if claim.group in groups:
        return claim.serves or status is not None
    return status in OPEN
