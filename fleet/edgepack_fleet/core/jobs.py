"""What a device may say about its job. Optimistic: an update names the version it is based on."""

from dataclasses import dataclass, replace
from typing import Any

from edgepack.messages import JobStatus, JobUpdate
from edgepack_fleet.core.model import TERMINAL

__all__ = ["JobState", "Refusal", "advance", "end"]

SAYABLE: frozenset[str] = frozenset({"IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"})
"""The fleet alone queues, cancels and times out."""


@dataclass(frozen=True, slots=True)
class JobState:
    """The part of a job that changes."""

    version: int = 0
    status: JobStatus = "QUEUED"
    state: str = ""
    """The device's own word for where it is, e.g. `downloading`."""
    reason: str = ""
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an update is not taken: a code of `messages.Rejected` and a sentence."""

    code: str
    message: str


def advance(job: JobState, update: JobUpdate) -> JobState | Refusal:
    """Return JOB after the device's UPDATE, or why it stays as it is.

    A repeat of the update that was taken last (its answer got lost) is taken again and changes
    nothing.
    """
    if update.status not in SAYABLE:
        return Refusal("bad_message", f"a device cannot say {update.status}")
    wanted = _applied(job, update)
    if update.version == job.version - 1 and replace(wanted, version=job.version) == job:
        return job
    if job.status in TERMINAL:
        return Refusal("terminal", f"the job is already {job.status}")
    if update.version != job.version:
        return Refusal(
            "version_mismatch", f"the job is at version {job.version}, not {update.version}"
        )
    return wanted


def end(job: JobState, status: JobStatus, reason: str) -> JobState:
    """Return JOB ended by the fleet itself, as TIMED_OUT or CANCELED."""
    return replace(job, version=job.version + 1, status=status, reason=reason)


def _applied(job: JobState, update: JobUpdate) -> JobState:
    changes: dict[str, Any] = {
        "status": update.status,
        "state": update.state,
        "reason": update.reason,
        "progress": min(max(update.progress, 0.0), 1.0),
    }
    return replace(job, version=job.version + 1, **changes)
