"""Between rows and what they mean: jobs, and the hint at one. Decides nothing."""

from typing import cast

import msgspec

from edgepack import messages, topics
from edgepack.messages import JobStatus
from edgepack_fleet.adapters.tables import JobRow, OutboxRow
from edgepack_fleet.core.jobs import JobState

__all__ = ["OPEN", "apply_job", "hint", "job_message", "job_state"]

OPEN = ("QUEUED", "IN_PROGRESS")


def job_state(row: JobRow) -> JobState:
    """Return the changing part of a job's ROW."""
    status = cast("JobStatus", row.status)
    return JobState(row.version, status, row.state, row.reason, row.progress)


def apply_job(row: JobRow, state: JobState, now: float) -> None:
    """Write STATE into a job's ROW."""
    row.version, row.status, row.state = state.version, state.status, state.state
    row.reason, row.progress, row.updated = state.reason, state.progress, now
    if row.started is None and state.status not in {"QUEUED", "CANCELED"}:
        row.started = now


def job_message(row: JobRow) -> messages.Job:
    """Return the job of ROW as a device reads it."""
    facts = {
        "job": row.id,
        "version": row.version,
        "status": row.status,
        "release": row.release,
        "target": row.target,
        "rollout": row.rollout_id,
        "probation_s": row.probation_s,
        "timeout_s": row.timeout_s,
    }
    return msgspec.convert(row.terms | facts, messages.Job)


def hint(device: str, now: float) -> OutboxRow:
    """Return the message that tells DEVICE to ask for its job; it is a hint and no more."""
    return OutboxRow(topic=topics.down(device, "job/notify"), payload=b'{"v":1}', created=now)
