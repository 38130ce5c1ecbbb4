"""Which devices say that what their model sees or says has changed, and how far. Reads only."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import DeviceRow, EventRow

__all__ = ["Alarm", "Feature", "Found", "read"]

MONTH_S = 30 * 86_400.0
MOST = 20_000
"""Events that are looked at; the newest ones."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A device on which a feature drifts now."""

    device: str
    group: str
    since: float
    """Unix seconds."""
    psi: float | None
    p: float | None
    n: int | None


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: the devices on which it drifts, the farthest first."""

    name: str
    alarms: tuple[Alarm, ...]
    over: int
    """Devices on which it has drifted and does not any more."""


@dataclass(frozen=True, slots=True)
class Found:
    """What devices say of one release."""

    release: str
    devices: int
    drifting: int
    """Devices on which at least one feature drifts."""
    features: tuple[Feature, ...]


def read(session: Session, release: str, now: float) -> Found:
    """Return what the devices that run RELEASE say of its drift."""
    runs = select(DeviceRow.id, DeviceRow.group_id).where(
        DeviceRow.bundle == release, DeviceRow.revoked.is_(None)
    )
    groups: dict[str, str] = dict(session.execute(runs).all())
    told = select(EventRow).where(
        EventRow.type.in_(("drift", "drift_over")), EventRow.received > now - MONTH_S
    )
    last: dict[tuple[str, str], EventRow] = {}
    for row in session.scalars(told.order_by(EventRow.received.desc()).limit(MOST)):
        if row.device_id in groups and row.body.get("bundle") == release:
            last.setdefault((str(row.body.get("reason") or "?"), row.device_id), row)
    return _found(release, groups, last)


def _found(release: str, groups: dict[str, str], last: dict[tuple[str, str], EventRow]) -> Found:
    alarms: dict[str, list[Alarm]] = defaultdict(list)
    over: dict[str, int] = defaultdict(int)
    for (name, device), row in last.items():
        if row.type == "drift":
            alarms[name].append(_alarm(device, groups[device], row))
        else:
            over[name] += 1
    features = [
        Feature(name, tuple(sorted(alarms[name], key=lambda a: -(a.psi or 0))), over[name])
        for name in sorted({*alarms, *over}, key=lambda n: (-len(alarms[n]), n))
    ]
    drifting = {alarm.device for found in alarms.values() for alarm in found}
    return Found(release, len(groups), len(drifting), tuple(features))


def _alarm(device: str, group: str, row: EventRow) -> Alarm:
    detail = row.body.get("detail") or {}
    count = _number(detail, "n")
    return Alarm(
        device, group, row.received, _number(detail, "psi"), _number(detail, "p"),
        None if count is None else int(count),
    )  # fmt: skip


def _number(detail: Any, name: str) -> float | None:
    value = detail.get(name) if isinstance(detail, dict) else None
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    return value if good else None
