"""Carries out what a decision asks for, within the caller's transaction. Decides nothing."""

import dataclasses
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.messages import Inventory, JobStatus
from edgepack_fleet import jobrows
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core import jobs
from edgepack_fleet.core.actions import (
    Action,
    Assign,
    Cancel,
    Complete,
    Pause,
    Recall,
    Revert,
    Reverted,
    TimeOut,
    Withdraw,
)
from edgepack_fleet.core.model import Policy
from edgepack_fleet.core.variants import Release, resolve

__all__ = ["before_of", "cancel_open", "carry_out", "state_after"]

STATES: dict[type[Action], str] = {
    Pause: "paused",
    Cancel: "cancelled",
    Revert: "reverting",
    Reverted: "reverted",
    Complete: "completed",
}


def state_after(state: str, actions: Sequence[Action]) -> str:
    """Return the state that a rollout in STATE comes into by ACTIONS."""
    return next((STATES[type(a)] for a in reversed(actions) if type(a) in STATES), state)


def carry_out(
    session: Session,
    row: RolloutRow,
    action: Action,
    published: Callable[[], Sequence[Release]],
    now: float,
) -> None:
    """Do ACTION for the rollout of ROW; PUBLISHED is asked for what a device may go back to."""
    match action:
        case Assign():
            _assign(session, row, action, published, now)
        case Withdraw(device):
            job = _newest(session, row, device)
            if job is not None and job.status == "QUEUED":
                session.delete(job)
        case Recall(device):
            _end(session, _newest(session, row, device), "CANCELED", "reverted", now)
        case TimeOut(device, reason):
            job = _newest(session, row, device)
            if job is not None and job.status == "IN_PROGRESS":
                _end(session, job, "TIMED_OUT", reason, now)
        case Revert(reason):
            row.stopped = reason
        case Cancel():
            cancel_open(session, JobRow.rollout_id == row.id, "cancelled", now)


def cancel_open(session: Session, which: Any, reason: str, now: float) -> None:
    """End every open job that matches WHICH and hint at its device."""
    for job in session.scalars(select(JobRow).where(which, JobRow.status.in_(jobrows.OPEN))):
        _end(session, job, "CANCELED", reason, now)


def _end(session: Session, job: JobRow | None, status: JobStatus, why: str, now: float) -> None:
    if job is not None and job.status in jobrows.OPEN:
        jobrows.apply_job(job, jobs.end(jobrows.job_state(job), status, why), now)
        session.add(jobrows.hint(job.device_id, now))


def _newest(session: Session, row: RolloutRow, device: str) -> JobRow | None:
    query = select(JobRow).where(JobRow.rollout_id == row.id, JobRow.device_id == device)
    return session.scalars(query.order_by(JobRow.attempt.desc()).limit(1)).first()


def _assign(
    session: Session,
    row: RolloutRow,
    action: Assign,
    published: Callable[[], Sequence[Release]],
    now: float,
) -> None:
    earlier = _newest(session, row, action.device)
    if earlier is not None:
        before = earlier.before
    else:
        device = session.get_one(DeviceRow, action.device)
        before = before_of(session, device, published)
    cancel_open(session, JobRow.device_id == action.device, "superseded", now)
    session.flush()
    session.add(_job(row, action, before, now))
    session.add(jobrows.hint(action.device, now))


def before_of(
    session: Session, device: DeviceRow, published: Callable[[], Sequence[Release]]
) -> dict[str, Any]:
    """Return the release that DEVICE runs and its variant, to go back to; empty if not known.

    What it was given counts before what would fit it now.
    """
    if not device.bundle:
        return {}
    given = (
        select(JobRow, RolloutRow)
        .join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
        .where(JobRow.device_id == device.id, JobRow.status == "SUCCEEDED")
        .where(JobRow.release == device.bundle, JobRow.kind == "install")
        .order_by(JobRow.updated.desc())
    )
    for job, row in session.execute(given):
        for variant in row.variants:
            if variant["path"] == job.target:
                return {"release": device.bundle, "variant": variant}
    for release in published():
        fitting = resolve(release, msgspec.convert(device.inventory, Inventory)).variant
        if release.id == device.bundle and fitting is not None:
            return {
                "release": device.bundle,
                "variant": dataclasses.asdict(fitting) | {"custom": dict(fitting.custom)},
            }
    return {}


def _job(row: RolloutRow, action: Assign, before: dict[str, Any], now: float) -> JobRow:
    policy = msgspec.convert(row.policy, Policy)
    back = action.kind == "revert"
    images = {variant["path"]: variant["sha256"] for variant in row.variants}
    return JobRow(
        # A device knows the id of a job that has ended: another attempt needs another one.
        id=f"{row.id}-{action.device}" + (f"-{secrets.token_hex(2)}" if action.attempt > 1 else ""),
        device_id=action.device,
        rollout_id=row.id,
        wave=action.wave,
        kind=action.kind,
        attempt=action.attempt,
        release=before["release"] if back else row.release,
        target=action.target,
        image=before["variant"]["sha256"] if back else images[action.target],
        terms=_terms(policy, back=back),
        before=before,
        measured={},
        detail={},
        probation_s=policy.probation_s,
        timeout_s=int(policy.timeout_s),
        created=now,
        updated=now,
    )


def _terms(policy: Policy, *, back: bool) -> dict[str, Any]:
    """Return what a device is told beside the model; a way back waits for nothing."""
    terms: dict[str, Any] = {"total_s": policy.total_s, "max_defer_s": policy.max_defer_s}
    if back:
        return terms
    terms["windows"] = msgspec.to_builtins(policy.windows)
    return terms | ({"shadow": {"seconds": policy.shadow_s}} if policy.shadow_s else {})
