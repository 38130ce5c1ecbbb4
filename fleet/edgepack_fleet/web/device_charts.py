"""What one device measured, for the charts of its page. Reads only."""

from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup
from edgepack_fleet.core.histograms import quantile

__all__ = ["Measured", "measured"]

DAY_S = 86_400.0


@dataclass(slots=True)
class Measured:
    """What a device measured, interval by interval, oldest first."""

    at: list[float] = field(default_factory=list)
    """Unix seconds at which the interval ended; of the one under way, now."""
    per_s: list[float] = field(default_factory=list)
    p95_ms: list[float | None] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    temperature_c: list[float | None] = field(default_factory=list)
    bundle: list[str] = field(default_factory=list)


def measured(session: Session, device: str, now: float) -> Measured:
    """Return what DEVICE measured in the day before NOW, oldest first."""
    query = select(DeviceRollup).where(
        DeviceRollup.device_id == device,
        DeviceRollup.span != EVER,
        DeviceRollup.start > now - DAY_S,
    )
    found = Measured()
    for row in session.scalars(query.order_by(DeviceRollup.start, DeviceRollup.span)):
        _add(found, row, now)
    return found


def _add(found: Measured, row: DeviceRollup, now: float) -> None:
    tail = quantile(row.latency, 0.95)
    found.at.append(min(row.start + row.span, now))
    found.per_s.append(row.inferences / row.span)
    found.p95_ms.append(tail.value if tail else None)
    found.errors.append(row.errors)
    found.rss_mb.append(row.rss_mb)
    found.temperature_c.append(row.temperature_c)
    found.bundle.append(row.bundle)
