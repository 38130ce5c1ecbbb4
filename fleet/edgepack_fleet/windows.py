"""Stretches of time in the database: which sums lie in one, of which devices. Judges nothing.

What is only known by the hour or by the day belongs to a window that it reaches into.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup, GroupRollup
from edgepack_fleet.adapters.tables import DeviceRow, RolloutRow
from edgepack_fleet.core.slots import DAY, Slot
from edgepack_fleet.core.sums import Sums, added
from edgepack_fleet.membership import inside, is_home
from edgepack_fleet.rollups import sums_of

__all__ = [
    "Entry",
    "Reporting",
    "Window",
    "entries",
    "per_device",
    "releases",
    "reporting",
    "within",
]


AT_ONCE = {"yield_per": 1000}
"""Rows in memory: a week of a large fleet has millions."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is asked for: a release, a stretch of time, and of whom."""

    release: str
    since: float
    until: float
    """Unix seconds."""
    group: str | None = None
    device: str | None = None

    def of(self, release: str) -> "Window":
        """Return the same of another RELEASE."""
        return replace(self, release=release)


@dataclass(frozen=True, slots=True)
class Entry:
    """What was added up in one slot, of one variant."""

    slot: Slot
    digest: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Reporting:
    """Which devices have said something about a release."""

    devices: int
    first: float | None
    """Unix seconds at which the earliest slot begins; None: there is none."""
    last: float | None
    """At which the latest ends."""


def entries(session: Session, window: Window) -> list[Entry]:
    """Return what lies in WINDOW, oldest first."""
    # What a group was is added up; what a filter finds, or was put into it since, is not.
    alone = window.device is not None or not is_home(session, window.group)
    kind: Any = DeviceRollup if alone else GroupRollup
    query = select(kind).where(*_inside(session, kind, window)).order_by(kind.start)
    rows = session.scalars(query, execution_options=AT_ONCE)
    found: dict[tuple[Slot, str], Sums] = {}
    for row in rows:
        key = Slot(row.span, row.start), row.digest
        found[key] = added(found[key], sums_of(row)) if key in found else sums_of(row)
    return [Entry(slot, digest, sums) for (slot, digest), sums in found.items()]


def reporting(session: Session, window: Window) -> Reporting:
    """Return which devices have said something in WINDOW."""
    kind = DeviceRollup
    query = select(
        func.count(kind.device_id.distinct()),
        func.min(kind.start),
        func.max(kind.start + kind.span),
    )
    found = session.execute(query.where(*_inside(session, kind, window))).one()
    return Reporting(found[0], found[1], found[2])


def per_device(session: Session, window: Window) -> Iterable[Any]:
    """Yield rows of device id, inferences, errors and latency in WINDOW, several a device."""
    kind = DeviceRollup
    query = select(kind.device_id, kind.inferences, kind.errors, kind.latency)
    found = query.where(*_inside(session, kind, window))
    return session.execute(found, execution_options=AT_ONCE)


def releases(session: Session, since: float) -> list[tuple[str, str]]:
    """Return every release and group of which something was said since then (Unix seconds)."""
    query = select(GroupRollup.bundle, GroupRollup.group_id).distinct()
    # A device may name what it likes; what no rollout and no other device knows is not watched.
    runs = select(DeviceRow.bundle).where(DeviceRow.bundle.is_not(None))
    known = GroupRollup.bundle.in_(select(RolloutRow.release)) | GroupRollup.bundle.in_(runs)
    found = session.execute(
        query.where(GroupRollup.span != EVER, GroupRollup.bundle != "", known)
        .where(GroupRollup.start + GroupRollup.span > since, GroupRollup.start > since - DAY)
        .order_by(GroupRollup.bundle, GroupRollup.group_id)
    )
    return [(bundle, group) for bundle, group in found]


def within(session: Session, device: Any, window: Window) -> list[ColumnElement[bool]]:
    """Return the conditions that DEVICE, a column of ids, is of whom the window is, as of now."""
    if window.device is not None:
        return [device == window.device]
    if window.group is None:
        return []
    return [device.in_(select(DeviceRow.id).where(inside(session, window.group)))]


def _inside(session: Session, kind: Any, window: Window) -> list[ColumnElement[bool]]:
    where = [
        kind.span != EVER,
        kind.bundle == window.release,
        kind.start + kind.span > window.since,
        kind.start > window.since - DAY,
        kind.start < window.until,
    ]
    if kind is DeviceRollup:
        return where + within(session, DeviceRollup.device_id, window)
    return where if window.group is None else [*where, GroupRollup.group_id == window.group]
