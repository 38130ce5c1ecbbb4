"""Telemetry in the database: added up as it comes, in the transaction that notes its arrival.

A report is counted once or not at all, and three times over: for its device, for its group, and
for its group since the beginning. Edges and names are those that its model is expected to have, so
that one odd device does not change what is known of the others.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any, TypeVar

from sqlalchemy import Row, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from edgepack.counting import OTHER
from edgepack.messages import Telemetry
from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup, GroupRollup, Rollup
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core.expectation import Expected
from edgepack_fleet.core.slots import FINE, Slot, slot_of
from edgepack_fleet.core.sums import Sums, added, fitted, of_report

__all__ = ["FIELDS", "count", "forget", "has_counted", "look_ahead", "put", "settle", "sums_of"]

LARGEST = 2**53
"""What a counter stops at: beyond this, neither JSON readers nor databases agree."""
MAX_UNPUBLISHED = 256
"""Models that were not published here and are told apart in one group; the rest is `OTHER`."""
FIELDS = tuple(f.name for f in fields(Sums))
NOTHING: dict[str, Any] = {
    **{name: getattr(Sums(), name) for name in FIELDS},
    "reasons": {},
    "classes": {},
    "features": {},
    "latency": None,
    "confidence": None,
}
R = TypeVar("R", DeviceRollup, GroupRollup)


@dataclass(slots=True)
class _Ahead:
    """What a transaction has read of devices whose rows it has locked, and what it has made."""

    rows: dict[tuple[Any, ...], DeviceRollup] = field(default_factory=dict)
    """By primary key; those that are not written yet among them."""
    slots: set[tuple[str, int]] = field(default_factory=set)
    """Device and start of the fine slots of which all rows are here."""
    counted: set[str] = field(default_factory=set)
    """Devices of which something was counted."""
    groups: dict[tuple[Slot, str, str, str], "_Group"] = field(default_factory=dict)
    """By slot, bundle, digest and group."""


@dataclass(slots=True)
class _Group:
    """What a transaction has counted of a group and not yet put into its rows."""

    rows: tuple[GroupRollup, GroupRollup]
    """Locked: of the slot, and of all time."""
    told: list[Sums] = field(default_factory=list)


def look_ahead(session: Session, devices: Collection[str], now: float) -> None:
    """Read at once the rows that reports of DEVICES, all locked, will be added to, if sent NOW.

    A look-up for each report would cost more than all else about it.
    """
    this = int(now // FINE) * FINE
    query = select(DeviceRollup).where(
        DeviceRollup.device_id.in_(devices),
        DeviceRollup.span == FINE,
        DeviceRollup.start.in_([this, this - FINE]),
    )
    ahead = _ahead(session)
    for row in session.scalars(query.with_for_update()):
        ahead.rows[tuple(inspect(DeviceRollup).primary_key_from_instance(row))] = row
    ahead.slots = {(device, start) for device in devices for start in (this, this - FINE)}


def _ahead(session: Session) -> _Ahead:
    return session.info.setdefault("rollups", _Ahead())  # type: ignore[no-any-return]


def count(
    session: Session, device: DeviceRow, report: Telemetry, now: float, expected: Expected
) -> Sequence[str]:
    """Add a telemetry REPORT of DEVICE that arrived NOW, of a model of which this is EXPECTED.

    What it adds to its group waits for `settle`.

    Returns:
        Why something of it is not told apart, or left out; totals are always counted.
    """
    slot = slot_of(report.start, report.end, now, device.enrolled)
    sums, odd = fitted(of_report(report), expected)
    about = {"bundle": (report.bundle or "")[:256], "digest": (report.digest or "")[:128]}
    if not expected.release:
        about["digest"] = ""  # it says nothing: any device may invent some
        if not _may_name(session, device.group_id, about["bundle"]):
            about["bundle"], odd = OTHER, [*odd, "too_many_models"]
    key = {"span": slot.span, "start": slot.start, **about, "device_id": device.id}
    _ahead(session).counted.add(device.id)
    _put(_of_device(session, key), sums)
    _of_group(session, slot, about | {"group_id": device.group_id}).told.append(sums)
    return odd


def has_counted(session: Session, device: str) -> bool:
    """Return whether this transaction has counted a report of DEVICE, written or not."""
    return device in _ahead(session).counted


def settle(session: Session) -> None:
    """Put what reports have added to their groups into the rows of these.

    Once for all of a batch: a row that all devices share is dear to change.
    """
    groups = _ahead(session).groups
    for group in groups.values():
        for row in group.rows:
            _put(row, *group.told)
    groups.clear()


def put(session: Session, kind: type[R], slot: Slot, about: Mapping[str, str], sums: Sums) -> None:
    """Add SUMS to the row of KIND that is ABOUT somebody in SLOT."""
    _put(_row(session, kind, {"span": slot.span, "start": slot.start, **about}), sums)


def _put(row: DeviceRollup | GroupRollup, *told: Sums) -> None:
    new = reduce(added, told, sums_of(row))
    for name in FIELDS:
        value = getattr(new, name)
        setattr(row, name, min(LARGEST, value) if isinstance(value, int) else value)


def forget(session: Session) -> None:
    """Hold no row any more, after a savepoint in which some were made has been rolled back."""
    session.info.pop("rollups", None)
    for row in list(session.identity_map.values()):
        if isinstance(row, Rollup):
            session.expunge(row)


def sums_of(row: DeviceRollup | GroupRollup | Row[Any]) -> Sums:
    """Return what ROW holds."""
    return Sums(**{name: getattr(row, name) for name in FIELDS})


def _may_name(session: Session, group: str, bundle: str) -> bool:
    """Return whether BUNDLE, which was not published here, is told apart in GROUP."""
    key = {"span": EVER, "start": 0, "bundle": bundle, "digest": "", "group_id": group}
    if not bundle or _held(session, GroupRollup, key) is not None:
        return True
    those = (GroupRollup.span == EVER, GroupRollup.digest == "", GroupRollup.group_id == group)
    # Rows are made at once, so nothing has to be written first; and no row is read to be changed.
    with session.no_autoflush:
        if session.scalar(select(GroupRollup.span).where(*those, GroupRollup.bundle == bundle)):
            return True
        return (session.scalar(select(func.count()).where(*those)) or 0) < MAX_UNPUBLISHED


def _place(kind: type[R], key: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(key[column.name] for column in inspect(kind).primary_key)


def _held(session: Session, kind: type[R], key: Mapping[str, Any]) -> R | None:
    identity = inspect(kind).identity_key_from_primary_key(_place(kind, key))
    return session.identity_map.get(identity)


def _of_device(session: Session, key: Mapping[str, Any]) -> DeviceRollup:
    """Return the row of KEY; one that is known not to be there is made without asking."""
    ahead, place = _ahead(session), _place(DeviceRollup, key)
    row = ahead.rows.get(place)
    if row is not None:
        return row
    if key["span"] != FINE or (key["device_id"], key["start"]) not in ahead.slots:
        return _row(session, DeviceRollup, key)
    # Nobody else makes it: the device is locked.
    row = ahead.rows[place] = DeviceRollup(**key, **NOTHING)
    session.add(row)
    return row


def _of_group(session: Session, slot: Slot, about: Mapping[str, str]) -> _Group:
    """Return what is ABOUT a group in SLOT; its rows are made at once, so others can be counted."""
    groups = _ahead(session).groups
    place = (slot, about["bundle"], about["digest"], about["group_id"])
    if place not in groups:
        now, ever = (
            _row(session, GroupRollup, {"span": s.span, "start": s.start, **about})
            for s in (slot, Slot(EVER, 0))
        )
        groups[place] = _Group((now, ever))
    return groups[place]


def _row(session: Session, kind: type[R], key: Mapping[str, Any]) -> R:
    """Return the row of KEY, made if there is none; no other transaction changes it meanwhile."""
    held = _held(session, kind, key)
    if held is not None:
        return held  # locked since this transaction read it
    # What is held already is written once, at the end: written now, it would be read again later.
    with session.no_autoflush:
        row = session.get(kind, key, with_for_update=True)
        if row is None:
            _insert_if_missing(session, kind, [{**key, **NOTHING}])
            row = session.get_one(kind, key, with_for_update=True)
    return row


def _insert_if_missing(session: Session, kind: type[R], rows: Iterable[dict[str, Any]]) -> None:
    postgres = session.get_bind().dialect.name == "postgresql"
    made = postgresql.insert(kind) if postgres else sqlite.insert(kind)
    session.execute(made.on_conflict_do_nothing(), list(rows))
