"""From the database to what the HTTP contract shows; used by routes and pages alike. Reads only."""

from collections.abc import Sequence

from cryptography import x509
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from edgepack.trust import TargetInfo
from edgepack_fleet import store
from edgepack_fleet.adapters.tables import (
    DeviceRow,
    EnrolToken,
    EventRow,
    GroupRow,
    JobRow,
    RolloutRow,
)
from edgepack_fleet.core.model import SERVING
from edgepack_fleet.core.precedence import Claim, Given, desired, follows
from edgepack_fleet.core.timeline import Standing
from edgepack_fleet.core.variants import Release
from edgepack_fleet.membership import memberships, put_into, sizes, unknown_device, unknown_group
from edgepack_fleet.web import schemas

__all__ = [
    "device",
    "devices",
    "enrol_token",
    "event",
    "groups",
    "known_device",
    "known_group",
    "release",
    "serving",
]

AT_ONCE = 1000
"""Ids in one query; databases take a few thousand at most."""


def devices(session: Session, rows: Sequence[DeviceRow]) -> list[schemas.Device]:
    """Return the devices of ROWS."""
    jobs = _jobs(session, [row.id for row in rows])
    claims = store.claims(session)
    groups = memberships(session, [row.id for row in rows])
    return [_device(row, groups[row.id], jobs.get(row.id, []), claims) for row in rows]


def device(session: Session, device_id: str) -> schemas.Device | None:
    """Return one device; None if there is none of that id."""
    row = session.get(DeviceRow, device_id)
    return devices(session, [row])[0] if row else None


def known_device(session: Session, device_id: str) -> schemas.Device:
    """Return one device.

    Raises:
        UsageError: there is none of that id.
    """
    found = device(session, device_id)
    if found is None:
        raise unknown_device(device_id)
    return found


def known_group(session: Session, group: str) -> schemas.Group:
    """Return one group.

    Raises:
        UsageError: there is none of that id.
    """
    found = groups(session, [group])
    if not found:
        raise unknown_group(session, group)
    return found[0]


def event(row: EventRow) -> schemas.Event:
    """Return what happened on a device."""
    return schemas.Event(
        device=row.device_id,
        boot=row.boot,
        seq=row.seq,
        received=row.received,
        type=row.type,
        verified=row.verified,
        body=row.body,
    )


def groups(session: Session, ids: Sequence[str]) -> list[schemas.Group]:
    """Return the groups of IDS."""
    claims = store.claims(session)
    rows = {row.id: row for row in session.scalars(select(GroupRow).where(GroupRow.id.in_(ids)))}
    counts = sizes(session, [row for row in rows.values() if row.filter])
    counts |= {row.id: _count(session, row.id) for row in rows.values() if not row.filter}
    return [_group(rows[group], counts[group], claims) for group in ids if group in rows]


def release(info: Release) -> schemas.Release:
    """Return a published release."""
    return schemas.Release(
        id=info.id,
        name=info.name,
        version=info.version,
        variants=[_variant(variant) for variant in info.variants],
    )


def enrol_token(row: EnrolToken) -> schemas.EnrolToken:
    """Return an enrolment token without its secret."""
    return schemas.EnrolToken(
        id=row.id,
        group=row.group_id,
        created=row.created,
        expires=row.expires,
        uses=row.uses,
        used=row.used,
        tags=row.tags,
        approval_s=row.approval_s,
    )


def _group(row: GroupRow, counted: tuple[int, int], claims: Sequence[Claim]) -> schemas.Group:
    devices, online = counted
    wanted = follows({row.id}, {}, claims)
    return schemas.Group(
        id=row.id,
        filter=row.filter or None,
        devices=devices,
        online=online,
        release=wanted.release if wanted else None,
    )


def serving(session: Session) -> dict[str, RolloutRow]:
    """Return the newest rollout of every group that serves."""
    query = select(RolloutRow).where(RolloutRow.state.in_(SERVING)).order_by(RolloutRow.number)
    return {row.group_id: row for row in session.scalars(query)}


def _count(session: Session, group: str) -> tuple[int, int]:
    """Return how many devices were put into GROUP, and how many of them are online."""
    online = func.coalesce(func.sum(case((DeviceRow.online, 1), else_=0)), 0)
    counted = session.execute(select(func.count(), online).where(put_into(group))).one()
    return int(counted[0]), int(counted[1])


def _jobs(session: Session, devices: Sequence[str]) -> dict[str, list[JobRow]]:
    """Return the jobs of each of DEVICES, those of the newest rollout last."""
    query = select(JobRow).join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
    found: dict[str, list[JobRow]] = {}
    for begin in range(0, len(devices), AT_ONCE):
        some = query.where(JobRow.device_id.in_(devices[begin : begin + AT_ONCE]))
        for job in session.scalars(some.order_by(RolloutRow.number, JobRow.attempt)):
            found.setdefault(job.device_id, []).append(job)
    return found


def _device(
    row: DeviceRow, groups: frozenset[str], jobs: Sequence[JobRow], claims: Sequence[Claim]
) -> schemas.Device:
    job = _job(jobs[-1]) if jobs else None
    given = {job.rollout_id: Given(job.status, job.release) for job in jobs}
    wanted = desired(groups, given, claims)
    facts = job.model_dump() if job else None
    stands = Standing(wanted, row.bundle, row.online, row.revoked is not None, facts)
    return schemas.Device(
        id=row.id,
        group=row.group_id,
        groups=sorted(groups),
        name=row.name,
        notes=row.notes,
        tags=row.tags,
        online=row.online,
        desired=wanted,
        bundle=row.bundle,
        standing=stands.sentence(),
        digest=row.digest,
        target=_target(row, jobs[-1] if jobs else None),
        agent=row.agent,
        inventory=row.inventory,
        enrolled=row.enrolled,
        last_seen=row.seen or None,
        revoked=row.revoked,
        signs_reports=bool(row.report_key),
        certificate_expires=_expires(row.certificate),
        job=job,
        inferences=row.inferences,
        errors=row.errors,
    )


def _expires(pem: str) -> float | None:
    if not pem:
        return None
    return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp()


def _target(row: DeviceRow, job: JobRow | None) -> str | None:
    """Return the runtime of the active variant where its job tells, else the preferred runtime."""
    if job is not None and job.status == "SUCCEEDED" and job.release == row.bundle:
        return job.target.rpartition("/")[2].partition("-")[0]
    return next(iter(row.inventory.get("runtimes", {})), None)


def _job(row: JobRow) -> schemas.Job:
    return schemas.Job(
        id=row.id,
        release=row.release,
        status=row.status,
        state=row.state,
        reason=row.reason,
        progress=row.progress,
        rollout=row.rollout_id,
        updated=row.updated,
    )


def _variant(variant: TargetInfo) -> schemas.Variant:
    model = variant.model
    return schemas.Variant(
        path=variant.path,
        sha256=variant.sha256,
        size=variant.size,
        runtime=model.runtime,
        precision=model.precision,
        min_runtime=model.min_runtime,
        arch=list(model.arch),
        cpu_features=list(model.cpu_features),
        epoch=model.epoch,
    )
