"""What happened on one device, from all that is kept of it, and what it measured. Reads only."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup
from edgepack_fleet.adapters.tables import AuditRow, ChangeRow, EventRow, JobRow
from edgepack_fleet.core.happenings import (
    Happening,
    Kind,
    merged,
    of_audit,
    of_change,
    of_event,
    of_job,
)
from edgepack_fleet.core.histograms import quantile

__all__ = ["KINDS", "Measured", "measured", "story"]

KINDS: tuple[Kind, ...] = get_args(Kind)
LINK = (
    "edgepack.device.enrolled", "edgepack.device.online", "edgepack.device.offline",
    "edgepack.device.revoked",
)  # fmt: skip
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


def story(
    session: Session, device: str, before: float, limit: int, kind: str = ""
) -> list[Happening]:
    """Return the newest of what happened on DEVICE before BEFORE (Unix seconds), newest first.

    What happened at one moment stays together, so there may be more than LIMIT.
    """
    found = [
        *_events(session, device, before, limit),
        *_changes(session, device, before, limit),
        *_jobs(session, device, before),
        *_deeds(session, device, before, limit),
    ]
    told = sorted((h for h in found if kind in {"", h.kind}), key=lambda h: h.at, reverse=True)
    edge = told[limit - 1].at if len(told) > limit else -math.inf
    return merged([h for h in told if h.at >= edge], len(told))


def measured(session: Session, device: str, now: float) -> Measured:
    """Return what DEVICE measured in the day before NOW, oldest first."""
    query = select(DeviceRollup).where(
        DeviceRollup.device_id == device,
        DeviceRollup.span != EVER,
        DeviceRollup.start > now - DAY_S,
    )
    found = Measured()
    for row in session.scalars(query.order_by(DeviceRollup.start, DeviceRollup.span)):
        _add(found, row)
    return found


def _add(found: Measured, row: DeviceRollup) -> None:
    tail = quantile(row.latency, 0.95)
    found.at.append(row.start + row.span)
    found.per_s.append(row.inferences / row.span)
    found.p95_ms.append(tail.value if tail else None)
    found.errors.append(row.errors)
    found.rss_mb.append(row.rss_mb)
    found.temperature_c.append(row.temperature_c)
    found.bundle.append(row.bundle)


def _events(session: Session, device: str, before: float, limit: int) -> Iterator[Happening]:
    query = select(EventRow).where(EventRow.device_id == device, EventRow.received < before)
    newest = query.order_by(EventRow.received.desc(), EventRow.seq.desc())
    # A batch that was told late has one time of arrival: it is read whole, or nobody finds its end.
    edge = session.scalar(newest.with_only_columns(EventRow.received).offset(limit).limit(1))
    for row in session.scalars(newest if edge is None else newest.where(EventRow.received >= edge)):
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
