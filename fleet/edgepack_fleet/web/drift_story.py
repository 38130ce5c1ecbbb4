"""Whether what a release sees and says has changed: what the fleet counts, what devices say."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet import insights
from edgepack_fleet.adapters.tables import DeviceRow, EventRow
from edgepack_fleet.core.drifting import Drift, Outlook, Rule, outlook
from edgepack_fleet.membership import inside
from edgepack_fleet.windows import Window
from edgepack_targets.pipeline.baseline import Baseline

__all__ = ["Alarm", "Feature", "Seen", "Variant", "of_devices", "of_fleet", "together"]

MONTH_S = 30 * 86_400.0
MOST = 20_000
"""Events that are looked at; the newest ones."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant and the features that are watched of it."""

    digest: str
    compared: bool
    """Whether there is a baseline to compare with."""
    features: tuple[Drift, ...]


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
class Seen:
    """What devices say of one release."""

    devices: int
    drifting: int
    """Devices on which at least one feature drifts."""
    features: tuple[Feature, ...]


def of_fleet(
    session: Session, window: Window, baseline: Callable[[str], Baseline | None], rule: Rule
) -> tuple[Variant, ...]:
    """Return what all devices together come to in WINDOW, by variant."""
    found = insights.drift_of(session, window, baseline, rule)
    return tuple(Variant(v.digest, bool(v.against), tuple(v.features)) for v in found)


def together(variants: Sequence[Variant]) -> Outlook:
    """Return what the features of all VARIANTS come to."""
    return outlook([feature for variant in variants for feature in variant.features])


def of_devices(session: Session, release: str, group: str, now: float) -> Seen:
    """Return what the devices that run RELEASE say of its drift; an empty GROUP: of all groups."""
    runs = select(DeviceRow.id, DeviceRow.group_id).where(
        DeviceRow.bundle == release, DeviceRow.revoked.is_(None)
    )
    if group:
        runs = runs.where(inside(session, group))
    groups: dict[str, str] = dict(session.execute(runs).all())
    told = select(EventRow).where(
        EventRow.type.in_(("drift", "drift_over")), EventRow.received > now - MONTH_S
    )
    last: dict[tuple[str, str], EventRow] = {}
    for row in session.scalars(told.order_by(EventRow.received.desc()).limit(MOST)):
        if row.device_id in groups and row.body.get("bundle") == release:
            last.setdefault((str(row.body.get("reason") or "?"), row.device_id), row)
    return _seen(groups, last)


def _seen(groups: dict[str, str], last: dict[tuple[str, str], EventRow]) -> Seen:
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
    return Seen(len(groups), len(drifting), tuple(features))


def _alarm(device: str, group: str, row: EventRow) -> Alarm:
    detail = row.body.get("detail") or {}
    count = _number(detail, "n")
    return Alarm(
        device,
        group,
        row.received,
        _number(detail, "psi"),
        _number(detail, "p"),
        None if count is None else int(count),
    )


def _number(detail: Any, name: str) -> float | None:
    value = detail.get(name) if isinstance(detail, dict) else None
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    return value if good else None
