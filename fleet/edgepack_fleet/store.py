"""Between rows and what they mean: loads rollouts, members and jobs. Decides nothing."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack import messages, topics
from edgepack.messages import Inventory, JobStatus
from edgepack.trust import TargetInfo
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, OutboxRow, RolloutRow
from edgepack_fleet.core.jobs import JobState
from edgepack_fleet.core.model import Device, Member, Policy, Rollout, RolloutState
from edgepack_fleet.core.rollout import parse_waves
from edgepack_fleet.core.variants import Release, resolve

__all__ = [
    "OPEN",
    "apply_job",
    "device_of",
    "hint",
    "job_message",
    "job_state",
    "members_of",
    "release_of",
    "rollout_of",
    "targets_as_json",
]

OPEN = ("QUEUED", "IN_PROGRESS")


def device_of(row: DeviceRow) -> Device:
    """Return the device of ROW."""
    inventory = msgspec.convert(row.inventory, Inventory)
    return Device(row.id, row.group_id, online=row.online, seen=row.seen, inventory=inventory)


def targets_as_json(variants: Sequence[TargetInfo]) -> list[Any]:
    """Return VARIANTS as they are kept in a rollout's row."""
    return [
        {"path": v.path, "sha256": v.sha256, "size": v.size, "custom": dict(v.custom)}
        for v in variants
    ]


def release_of(row: RolloutRow) -> Release:
    """Return the release of a rollout as it was when the rollout was created."""
    name, _, version = row.release.partition("@")
    return Release(name, version, tuple(TargetInfo(**variant) for variant in row.variants))


def rollout_of(row: RolloutRow) -> Rollout:
    """Return the rollout of ROW."""
    return Rollout(
        id=row.id,
        group=row.group_id,
        release=row.release,
        waves=parse_waves(row.waves),
        state=cast("RolloutState", row.state),
        policy=Policy(**row.policy),
        forgiven=frozenset(row.forgiven),
    )


def members_of(
    session: Session, row: RolloutRow, heard_since: float, *, everybody: bool = False
) -> list[Member]:
    """Return the part of every device of the group in the rollout of ROW.

    Args:
        session: A database session.
        row: The rollout.
        heard_since: Unix seconds since which we have been able to hear devices; silence before
            that is not held against anybody.
        everybody: Also those that a newer rollout has taken on since.
    """
    of_group = select(DeviceRow).where(DeviceRow.group_id == row.group_id)
    devices = session.scalars(of_group.where(DeviceRow.revoked.is_(None))).all()
    jobs = session.scalars(select(JobRow).where(JobRow.rollout_id == row.id)).all()
    job_of = {job.device_id: job for job in jobs}
    release = release_of(row)
    newer = set() if everybody else _with_newer_intent(session, row)
    return [
        _member(device, release, job_of.get(device.id), heard_since)
        for device in devices
        if device.id in job_of or device.id not in newer
    ]


def _with_newer_intent(session: Session, row: RolloutRow) -> set[str]:
    """Return the devices a newer rollout has spoken to: an older one leaves them alone."""
    query = (
        select(JobRow.device_id)
        .join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
        .where(RolloutRow.number > row.number, JobRow.status != "CANCELED")
    )
    return set(session.scalars(query))


def _member(row: DeviceRow, release: Release, job: JobRow | None, heard_since: float) -> Member:
    device = device_of(row)
    if job is None:
        variant = resolve(release, device.inventory).variant
        return Member(device, target=variant.path if variant else None)
    return Member(
        device,
        target=job.target,
        wave=job.wave,
        status=cast("JobStatus", job.status),
        reason=job.reason,
        since=max(job.updated, heard_since) if job.status in OPEN else job.updated,
    )


def job_state(row: JobRow) -> JobState:
    """Return the changing part of a job's ROW."""
    status = cast("JobStatus", row.status)
    return JobState(row.version, status, row.state, row.reason, row.progress)


def apply_job(row: JobRow, state: JobState, now: float) -> None:
    """Write STATE into a job's ROW."""
    row.version, row.status, row.state = state.version, state.status, state.state
    row.reason, row.progress, row.updated = state.reason, state.progress, now


def job_message(row: JobRow) -> messages.Job:
    """Return the job of ROW as a device reads it."""
    return messages.Job(
        job=row.id,
        version=row.version,
        status=cast("JobStatus", row.status),
        release=row.release,
        target=row.target,
        rollout=row.rollout_id,
        probation_s=row.probation_s,
        timeout_s=row.timeout_s,
    )


def hint(device: str, now: float) -> OutboxRow:
    """Return the message that tells DEVICE to ask for its job; it is a hint and no more."""
    return OutboxRow(topic=topics.down(device, "job/notify"), payload=b'{"v":1}', created=now)
