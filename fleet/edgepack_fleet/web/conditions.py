"""What lists can be filtered by that is no column: conditions on devices, for the database."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, exists, func, select, tuple_
from sqlalchemy.orm import Session, aliased

from edgepack_fleet import store
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core.model import FAILURES, SERVING
from edgepack_fleet.core.precedence import Given, desired
from edgepack_fleet.membership import everybody

__all__ = ["Wish", "attention", "behind", "wishes"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a device shall run, and what it says it runs."""

    device: str
    desired: str | None
    bundle: str | None
    online: bool

    @property
    def behind(self) -> bool:
        """Whether it does not run what it shall."""
        return self.desired is not None and self.desired != self.bundle


def wishes(session: Session) -> list[Wish]:
    """Return what every device shall run that is not revoked."""
    claims = store.claims(session)
    columns = (DeviceRow.bundle, DeviceRow.online, DeviceRow.revoked)
    rows, groups = everybody(session, {claim.group for claim in claims}, *columns)
    given = _given(session)
    return [
        Wish(row.id, desired(groups[row.id], given.get(row.id, {}), claims), row.bundle, row.online)
        for row in rows
        if row.revoked is None
    ]


def behind(session: Session) -> ColumnElement[bool]:
    """Return the condition that a device does not run what it shall."""
    late: Sequence[str] = [wish.device for wish in wishes(session) if wish.behind]
    # As literals: a database takes some ten thousand parameters at most.
    return DeviceRow.id.in_(bindparam(None, late, expanding=True, literal_execute=True))


def _given(session: Session) -> dict[str, dict[str, Given]]:
    """Return what each device was given by rollouts that may have a say."""
    rival = aliased(RolloutRow)
    # Every device is in the group it is at home in, so a rollout that serves that group outranks
    # for sure whatever is lower. Without this, every update ever made would be read.
    outranked = exists().where(
        rival.group_id == DeviceRow.group_id,
        rival.state.in_(SERVING),
        tuple_(rival.priority, rival.number) > tuple_(RolloutRow.priority, RolloutRow.number),
    )
    jobs = select(JobRow.device_id, JobRow.rollout_id, JobRow.status, JobRow.release)
    jobs = jobs.join(RolloutRow, RolloutRow.id == JobRow.rollout_id)
    jobs = jobs.join(DeviceRow, DeviceRow.id == JobRow.device_id).where(~outranked)
    found: dict[str, dict[str, Given]] = {}
    for device, rollout, status, release in session.execute(
        jobs.order_by(RolloutRow.number, JobRow.attempt)
    ):
        found.setdefault(device, {})[rollout] = Given(status, release)
    return found


def attention() -> ColumnElement[bool]:
    """Return the condition that the newest job of a device has failed, and somebody may help it."""
    job, rollout = aliased(JobRow), aliased(RolloutRow)
    newest = (
        select(func.max(rollout.number))
        .join(job, job.rollout_id == rollout.id)
        .where(job.device_id == DeviceRow.id)
        .correlate(DeviceRow)
        .scalar_subquery()
    )
    failed = exists().where(
        JobRow.device_id == DeviceRow.id,
        JobRow.status.in_(FAILURES),
        RolloutRow.id == JobRow.rollout_id,
        RolloutRow.number == newest,
    )
    return failed & DeviceRow.revoked.is_(None)
