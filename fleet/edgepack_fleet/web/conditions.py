"""What lists can be filtered by that is no column: conditions on devices, for the database."""

from sqlalchemy import ColumnElement, String, case, cast, exists, func, null, select
from sqlalchemy.orm import Session, aliased

from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core.model import FAILURES, SERVING
from edgepack_fleet.membership import inside
from edgepack_fleet.store import rank

__all__ = ["attention", "wanted"]


def wanted(session: Session) -> ColumnElement[str | None]:
    """Return what the rollouts that cover a device would have it run; null: nothing.

    What a device was given by a rollout of a group that it has left since does not count.
    """
    serving = select(RolloutRow).where(RolloutRow.state.in_(SERVING))
    rows = sorted(session.scalars(serving), key=rank, reverse=True)
    groups = dict.fromkeys(row.group_id for row in rows)
    first = {row.group_id: row for row in reversed(rows)}
    covering = [(inside(session, group), first[group].release) for group in groups]
    return case(*covering, else_=None) if covering else cast(null(), String)


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
