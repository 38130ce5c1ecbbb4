"""What lists can be filtered by that is no column: conditions on devices, for the database."""

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.orm import aliased

from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core.model import FAILURES

__all__ = ["attention"]


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
