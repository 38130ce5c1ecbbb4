"""What a model does on a device after its job has succeeded, added up as the reports arrive.

For a day; then the numbers stay as they are. Gates read them with the job.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.messages import Event
from edgepack_fleet.adapters.rollup_tables import DeviceRollup
from edgepack_fleet.adapters.tables import DeviceRow, JobRow
from edgepack_fleet.core.measures import add, baseline, drifted
from edgepack_fleet.core.slots import HOUR
from edgepack_fleet.rollups import has_counted

__all__ = ["begin", "count", "notice"]

MEASURED_S = 86400.0
BASELINE_S = 3600.0
"""Seconds before the job ended of which latencies count for the model before."""


def begin(session: Session, device: DeviceRow, job: JobRow, now: float) -> None:
    """Measure the model of JOB on DEVICE from NOW on, beside the one before."""
    device.measured_job = ""
    if job.kind != "install" or job.reason == "already_active":
        return
    device.measured_job = job.id
    before = select(DeviceRollup.latency).where(
        DeviceRollup.device_id == device.id,
        DeviceRollup.start + DeviceRollup.span > now - BASELINE_S,
        DeviceRollup.start > now - BASELINE_S - HOUR,
        DeviceRollup.bundle.not_in(["", job.release]),
    )
    # A device that was away tells an hour and its end in one batch. For all others, to write the
    # batch so far costs more than all else here.
    if has_counted(session, device.id):
        session.flush()
    with session.no_autoflush:
        found = session.scalars(before).all()
    job.measured = baseline([{"latency_ms": latency} for latency in found])


def count(session: Session, device: DeviceRow, report: dict[str, object], now: float) -> None:
    """Add a telemetry REPORT of DEVICE, if it is about the model that is measured."""
    job = _measured(session, device)
    if job is None:
        return
    if now > job.updated + MEASURED_S:
        device.measured_job = ""
    elif report.get("bundle") == job.release:
        job.measured = add(job.measured, report)


def notice(session: Session, device: DeviceRow, event: Event) -> None:
    """Take an EVENT about drift, if it is about the model that is measured."""
    if event.type not in {"drift", "drift_over"}:
        return
    job = _measured(session, device)
    if job is not None and event.bundle == job.release:
        job.measured = drifted(job.measured, event.reason, over=event.type == "drift_over")


def _measured(session: Session, device: DeviceRow) -> JobRow | None:
    return session.get(JobRow, device.measured_job) if device.measured_job else None
