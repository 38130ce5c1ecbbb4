"""How one device counts in a rollout: reached, finished, failed, declined, to be tried again."""

import math
from collections.abc import Sequence
from dataclasses import replace

from edgepack_fleet.core.model import FAILURES, TERMINAL, Member, Policy, Rollout

__all__ = [
    "DECLINED",
    "TRANSIENT",
    "counted",
    "due",
    "eligible",
    "ended",
    "failed",
    "finished",
    "free",
    "gone",
    "open_jobs",
    "overdue",
    "reached",
    "retries",
    "room",
    "timed_out",
]

TRANSIENT: frozenset[str] = frozenset(
    {
        "bad_block",
        "blob_missing",
        "byte_budget",
        "damaged_blob",
        "deferred_too_long",
        "delta_failed",
        "digest_mismatch",
        "disk_full",
        "internal_error",
        "job_timeout",
        "metadata_expired",
        "metadata_missing",
        "runner_start",
        "staging_timeout",
        "storage",
        "unreachable",
    }
)
"""Reasons that say nothing of the model and may pass: worth another try."""
DECLINED: frozenset[str] = frozenset({"pinned", "cancelled_locally"})
"""Reasons of a person at the device: neither a success nor a failure of the model."""
MINUTE_S = 60.0


def declined(member: Member) -> bool:
    """Return whether a person at the device does not want it."""
    return member.status in FAILURES and member.reason in DECLINED


def retries(member: Member, policy: Policy) -> bool:
    """Return whether MEMBER failed for a reason that may pass and has a try left."""
    return (
        member.status == "FAILED"
        and member.reason in TRANSIENT
        and member.attempt < policy.max_attempts
    )


def due(member: Member, policy: Policy, now: float) -> bool:
    """Return whether it is time for the next try of a member that `retries`."""
    return now >= member.since + policy.retry_s * 2.0 ** (member.attempt - 1)


def failed(member: Member, policy: Policy) -> bool:
    """Return whether MEMBER has failed for good."""
    return member.status in FAILURES and not declined(member) and not retries(member, policy)


def finished(member: Member, policy: Policy) -> bool:
    """Return whether nothing more is to come of MEMBER's job."""
    return member.status in TERMINAL and not retries(member, policy)


def reached(member: Member) -> bool:
    """Return whether MEMBER has taken its job up."""
    return member.wave is not None and member.status != "QUEUED"


def eligible(members: Sequence[Member], rollout: Rollout, now: float) -> list[Member]:
    """Return the members that count: they have, or could have, a variant of the release."""
    return [
        m for m in members if not m.left and not declined(m) and (m.wave is not None or
        (m.target is not None and not _left_out(m, rollout.policy, now)))
    ]  # fmt: skip


def free(member: Member, policy: Policy, now: float) -> bool:
    """Return whether MEMBER could be given a job now."""
    return member.device.online and not member.left and not _left_out(member, policy, now)


def _left_out(member: Member, policy: Policy, now: float) -> bool:
    accepted = member.override and policy.overrides == "accept"
    return bool(member.taken_by) or accepted or member.boxed_until > now


def overdue(member: Member, policy: Policy, now: float) -> str:
    """Return why the job of MEMBER, which took it up, is to be ended; empty if it is not."""
    if member.status != "IN_PROGRESS":
        return ""
    patience = policy.timeout_s + (policy.max_defer_s if member.state == "deferred" else 0)
    if now - member.since > patience:
        return "timed_out"
    longest = policy.total_s + policy.max_defer_s + policy.timeout_s
    over = member.started is not None and now - member.started > longest
    return "job_timeout" if over else ""


def timed_out(member: Member, reason: str) -> Member:
    """Return MEMBER after its job was ended because it was `overdue`."""
    return replace(member, status="TIMED_OUT", reason=reason)


def gone(member: Member, policy: Policy, now: float) -> bool:
    """Return whether a device left with its job untouched, for longer than we wait."""
    if member.wave is None or member.status != "QUEUED":
        return False
    away = now - max(member.device.seen, member.since) > policy.patience_s
    return member.left or (not member.device.online and away)


def open_jobs(members: Sequence[Member]) -> int:
    """Return how many of MEMBERS have an unfinished job."""
    return sum(m.wave is not None and m.status not in TERMINAL for m in members)


def room(members: Sequence[Member], policy: Policy, now: float) -> int:
    """Return how many more jobs may be given now, whatever wave they are of."""
    found = policy.max_in_flight - open_jobs(members)
    if policy.max_per_minute:
        recent = sum(m.wave is not None and m.given > now - MINUTE_S for m in members)
        found = min(found, policy.max_per_minute - recent)
    return max(0, found)


def counted(rollout: Rollout, members: Sequence[Member], wave: int) -> list[Member]:
    """Return the devices of WAVE that were reached and count; MEMBERS are those that count."""
    return [
        m for m in members if m.wave == wave and m.device.id not in rollout.forgiven and reached(m)
    ]


def ended(rollout: Rollout, inside: Sequence[Member]) -> float | None:
    """Return when a quorum of INSIDE, its `counted` devices, had finished; None: it has not."""
    over = [m for m in inside if finished(m, rollout.policy)]
    if not inside or len(over) < math.ceil(rollout.policy.quorum * len(inside)):
        return None
    return max(m.since for m in over)
