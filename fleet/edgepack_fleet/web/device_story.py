"""What happened on one device, from all that is kept of it, and what it measured. Reads only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import AuditRow, ChangeRow, EventRow, JobRow, TelemetryRow
from edgepack_fleet.core.happenings import (
    Happening,
    Kind,
    merged,
    of_audit,
    of_change,
    of_event,
    of_job,
)
from edgepack_fleet.core.measures import p95

__all__ = ["KINDS", "Measured", "measured", "story"]

KINDS: tuple[Kind, ...] = get_args(Kind)
LINK = (
    "edgepack.device.enrolled", "edgepack.device.online", "edgepack.device.offline",
    "edgepack.device.revoked",
)  # fmt: skip
POINTS = 360
DAY_S = 86_400.0


@dataclass(slots=True)
class Measured:
    """What a device measured, interval by interval, oldest first."""

    at: list[float] = field(default_factory=list)
    """Unix seconds at which the interval ended."""
    per_s: list[float] = field(default_factory=list)
    p95_ms: list[float | None] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    temperature_c: list[float | None] = field(default_factory=list)
    bundle: list[str] = field(default_factory=list)


def story(session: Session, device: str, before: float, limit: int) -> list[Happening]:
    """Return the newest of what happened on DEVICE before BEFORE (Unix seconds), newest first."""
    found = [
        *_events(session, device, before, limit),
        *_changes(session, device, before, limit),
        *_jobs(session, device, before),
        *_deeds(session, device, before, limit),
    ]
    return merged(found, limit)


def measured(session: Session, device: str, now: float) -> Measured:
    """Return what DEVICE measured in the day before NOW, the newest intervals of it."""
    query = select(TelemetryRow.body).where(
        TelemetryRow.device_id == device, TelemetryRow.received > now - DAY_S
    )
    newest = session.scalars(query.order_by(TelemetryRow.received.desc()).limit(POINTS)).all()
    found = Measured()
    for body in sorted(newest, key=lambda b: float(b["end"])):
        _add(found, body)
    return found


def _add(found: Measured, body: dict[str, Any]) -> None:
    latency: dict[str, Any] = body.get("latency_ms") or {}
    counted = sum(latency.get("counts", ())) > 0
    found.at.append(float(body["end"]))
    found.per_s.append(body["inferences"] / max(1.0, body["end"] - body["start"]))
    found.p95_ms.append(p95(latency) if counted else None)
    found.errors.append(sum(body["errors"].values()))
    found.rss_mb.append(float(body["rss_mb"]))
    found.temperature_c.append(body.get("temperature_c"))
    found.bundle.append(body.get("bundle") or "")


def _events(session: Session, device: str, before: float, limit: int) -> Iterator[Happening]:
    query = select(EventRow).where(EventRow.device_id == device, EventRow.received < before)
    newest = query.order_by(EventRow.received.desc(), EventRow.seq.desc()).limit(limit)
    for row in session.scalars(newest):
        yield of_event(row.received, row.type, row.body, signed=row.verified)


def _changes(session: Session, device: str, before: float, limit: int) -> Iterator[Happening]:
    query = select(ChangeRow).where(
        ChangeRow.subject == f"devices/{device}", ChangeRow.type.in_(LINK), ChangeRow.time < before
    )
    for row in session.scalars(query.order_by(ChangeRow.id.desc()).limit(limit)):
        yield of_change(row.time, row.type, "", row.data)


def _jobs(session: Session, device: str, before: float) -> Sequence[Happening]:
    query = select(JobRow).where(JobRow.device_id == device, JobRow.created < before)
    names = ("release", "status", "state", "reason", "kind", "attempt", "created", "updated")
    told = [
        one
        for row in session.scalars(query)
        for one in of_job({n: getattr(row, n) for n in names} | {"rollout": row.rollout_id})
    ]
    return [one for one in told if one.at < before]


def _deeds(session: Session, device: str, before: float, limit: int) -> Iterator[Happening]:
    paths = [f"{base}/devices/{device}" for base in ("", "/api/v1")]
    about = or_(*(AuditRow.path.startswith(f"{p}/", autoescape=True) for p in paths))
    query = select(AuditRow).where(about, AuditRow.time < before).order_by(AuditRow.id.desc())
    for row in session.scalars(query.limit(limit)):
        yield of_audit(row.time, f"{row.name} ({row.role})", row.action, row.status, row.reason)
