"""Between rows and what they mean: rollouts, releases, devices, members. Decides nothing.

Which rollout goes first on a device is said in `core.precedence`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, or_, select
from sqlalchemy.orm import Session

from edgepack.messages import Inventory
from edgepack.trust import TargetInfo
from edgepack_fleet import jobrows
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core.measures import metrics
from edgepack_fleet.core.members import TRANSIENT
from edgepack_fleet.core.model import (
    FAILURES,
    SERVING,
    Device,
    JobKind,
    JobStatus,
    Member,
    Policy,
    Rollout,
    RolloutState,
)
from edgepack_fleet.core.overtaking import Line, overtaken_by
from edgepack_fleet.core.precedence import Claim, follows
from edgepack_fleet.core.variants import Release, resolve
from edgepack_fleet.core.waves import parse_waves
from edgepack_fleet.membership import alive_in, devices_of, memberships

Q = TypeVar("Q", bound=Select[*tuple[Any, ...]])

__all__ = [
    "claim_of",
    "claims",
    "device_of",
    "jobs_of",
    "members_of",
    "overtakers",
    "progress_of",
    "rank",
    "release_of",
    "rollout_of",
    "targets_as_json",
]


def device_of(row: DeviceRow | Row[Any]) -> Device:
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
        policy=msgspec.convert(row.policy, Policy),
        forgiven=frozenset(row.forgiven),
        waived=frozenset(row.waived),
        standing=row.reason,
        stopped=row.stopped,
    )


def rank(row: RolloutRow | Row[Any]) -> tuple[int, int]:
    """Return where ROW stands among rollouts: the highest goes first."""
    return row.priority, row.number


def jobs_of(session: Session, rollout: str) -> dict[str, JobRow]:
    """Return the newest job of every device in ROLLOUT."""
    rows = session.scalars(_newest_last(select(JobRow), rollout))
    # Later ones replace earlier ones in the dictionary.
    return {job.device_id: job for job in rows}


def progress_of(session: Session, rollout: str) -> dict[str, float]:
    """Return how far each device in ROLLOUT has come, 0 to 1."""
    rows: Sequence[Any] = session.execute(
        _newest_last(select(JobRow.device_id, JobRow.progress), rollout)
    ).all()
    return {row.device_id: row.progress for row in rows}


def _newest_last(query: Q, rollout: str) -> Q:
    return query.where(JobRow.rollout_id == rollout).order_by(JobRow.attempt)


# Columns in place of objects: every decision reads them of every device, and keeping track of
# objects costs more than reading them.
_JOB = select(
    JobRow.device_id,
    JobRow.target,
    JobRow.wave,
    JobRow.status,
    JobRow.reason,
    JobRow.state,
    JobRow.kind,
    JobRow.attempt,
    JobRow.created,
    JobRow.started,
    JobRow.updated,
    JobRow.before,
    JobRow.measured,
    JobRow.detail,
)
_DEVICE = (
    DeviceRow.id,
    DeviceRow.group_id,
    DeviceRow.online,
    DeviceRow.seen,
    DeviceRow.inventory,
    DeviceRow.bundle,
    DeviceRow.override,
    DeviceRow.revoked,
)


def members_of(
    session: Session,
    row: RolloutRow,
    heard_since: float,
    *,
    now: float = 0.0,
    everybody: bool = False,
    installs: bool = False,
) -> list[Member]:
    """Return the part of every device of the group in the rollout of ROW.

    Args:
        session: A database session.
        row: The rollout.
        heard_since: Unix seconds since which we have been able to hear devices; silence before
            that is not held against anybody.
        now: Unix seconds; what is left out because of failures depends on it.
        everybody: Also those that another rollout has taken on.
        installs: As they were with the release, whatever way back they were given after it.
    """
    given = _JOB.where(JobRow.kind == "install") if installs else _JOB
    newest_last: Sequence[Any] = session.execute(_newest_last(given, row.id)).all()
    jobs = {job.device_id: job for job in newest_last}
    covered = {device.id: device for device in alive_in(session, row.group_id, *_DEVICE)}
    away = [device for device in jobs if device not in covered]
    left = [d for d in devices_of(session, sorted(away), *_DEVICE) if d.revoked is None]
    devices = sorted((*covered.values(), *left), key=_id)
    taken = {} if everybody else _taken(session, row, [device.id for device in devices])
    boxed = _boxed(session, row, now)
    facts = _Facts(row, heard_since, release_of(row), frozenset(covered), taken, boxed)
    return [_member(device, facts, jobs.get(device.id)) for device in devices]


def _id(row: Row[Any]) -> str:
    found: str = row.id
    return found


@dataclass(frozen=True, slots=True)
class _Facts:
    """What all members of a rollout have in common."""

    row: RolloutRow
    heard_since: float
    release: Release
    covered: frozenset[str]
    """The devices of its group."""
    taken: Mapping[str, str]
    boxed: Mapping[str, float] = field(default_factory=dict)


def claim_of(row: RolloutRow | Row[Any]) -> Claim:
    """Return what the rollout of ROW would have a device do."""
    return Claim(row.id, row.group_id, rank(row), row.state in SERVING, row.release)


def claims(session: Session) -> list[Claim]:
    """Return what every rollout would have a device do."""
    columns = (RolloutRow.id, RolloutRow.group_id, RolloutRow.priority, RolloutRow.number,
               RolloutRow.state, RolloutRow.release)  # fmt: skip
    rows: Sequence[Any] = session.execute(select(*columns)).all()
    return [claim_of(row) for row in rows]


def overtakers(session: Session, rows: Sequence[RolloutRow]) -> dict[str, Line]:
    """Return what goes before each of ROWS that was overtaken, by its id."""
    columns = (RolloutRow.id, RolloutRow.group_id, RolloutRow.priority, RolloutRow.number,
               RolloutRow.state, RolloutRow.release)  # fmt: skip
    same = RolloutRow.group_id.in_({row.group_id for row in rows})
    known: Sequence[Any] = session.execute(select(*columns).where(same)).all()
    others = [_line(row) for row in known]
    found = {row.id: overtaken_by(_line(row), others) for row in rows}
    return {rollout: first for rollout, first in found.items() if first is not None}


def _line(row: RolloutRow | Row[Any]) -> Line:
    return Line(row.id, row.group_id, rank(row), row.state, row.release)


def _taken(session: Session, row: RolloutRow, devices: Sequence[str]) -> dict[str, str]:
    """Return the devices that a rollout which goes before ROW has, and that one's id."""
    claims = [claim_of(other) for other in session.scalars(select(RolloutRow).where(_before(row)))]
    if not claims:
        return {}
    spoken = (
        select(JobRow.device_id, JobRow.rollout_id, JobRow.status)
        .join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
        .where(_before(row), JobRow.status != "CANCELED")
    )
    jobs: dict[str, dict[str, str]] = defaultdict(dict)
    for device, rollout, status in session.execute(spoken.order_by(JobRow.attempt)):
        jobs[device][rollout] = status
    groups = memberships(session, devices, {claim.group for claim in claims})
    first = {id_: follows(groups[id_], jobs.get(id_, {}), claims) for id_ in devices}
    return {device: claim.rollout for device, claim in first.items() if claim is not None}


def _before(row: RolloutRow) -> ColumnElement[bool]:
    newer = and_(RolloutRow.priority == row.priority, RolloutRow.number > row.number)
    return or_(RolloutRow.priority > row.priority, newer)


def _boxed(session: Session, row: RolloutRow, now: float) -> dict[str, float]:
    """Return until when devices are left out because they failed too often."""
    policy = rollout_of(row).policy
    if not policy.penalty_failures:
        return {}
    # A model that is bad is not the device's fault: only what may pass, and silence, count.
    own_fault = or_(JobRow.status == "TIMED_OUT", JobRow.reason.in_(TRANSIENT))
    failures = select(JobRow.device_id, JobRow.updated).where(
        JobRow.status.in_(FAILURES), own_fault, JobRow.updated > now - policy.penalty_s
    )
    times = defaultdict(list)
    for device, at in session.execute(failures.order_by(JobRow.updated.desc())):
        times[device].append(at)
    return _until(times, policy)


def _until(times: Mapping[str, list[float]], policy: Policy) -> dict[str, float]:
    enough = policy.penalty_failures
    return {
        device: newest_first[enough - 1] + policy.penalty_s
        for device, newest_first in times.items()
        if len(newest_first) >= enough
    }


def _member(row: Row[Any], facts: _Facts, job: Row[Any] | None) -> Member:
    device = device_of(row)
    member = Member(
        device,
        has_it=row.bundle == facts.row.release,
        boxed_until=facts.boxed.get(row.id, 0.0),
        override=row.override,
        taken_by=facts.taken.get(row.id, ""),
        left=row.id not in facts.covered,
    )
    if job is not None:
        return _with_job(member, facts, job)
    variant = resolve(facts.release, device.inventory).variant
    return replace(member, target=variant.path if variant else None)


def _with_job(member: Member, facts: _Facts, job: Row[Any]) -> Member:
    waits = job.status in jobrows.OPEN
    return replace(
        member,
        target=job.target,
        wave=job.wave,
        status=cast("JobStatus", job.status),
        reason=job.reason,
        since=max(job.updated, facts.heard_since) if waits else job.updated,
        state=job.state,
        kind=cast("JobKind", job.kind),
        attempt=job.attempt,
        given=job.created,
        started=job.started,
        before=_path_before(job, facts.row.release),
        measured=metrics(job.measured, job.detail),
    )


def _path_before(job: Row[Any], release: str) -> str | None:
    if not job.before or job.before["release"] == release:
        return None
    return str(job.before["variant"]["path"])
