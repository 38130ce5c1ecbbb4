"""Telemetry in the database: added up as it comes, in the transaction that notes its arrival.

A report is counted once or not at all, and three times over: for its device, for its group, and
for its group since the beginning. Edges and names are those that its model is expected to have, so
that one odd device does not change what is known of the others.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
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

__all__ = ["FIELDS", "count", "forget", "look_ahead", "put", "sums_of"]

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
    group = about | {"group_id": device.group_id}
    key = {"span": slot.span, "start": slot.start, **about, "device_id": device.id}
    _put(_of_device(session, key), sums)
    put(session, GroupRollup, slot, group, sums)
    # Bins of features mean nothing beyond their baseline, and are not asked for over all time.
    put(session, GroupRollup, Slot(EVER, 0), group, sums)
    return odd


def put(session: Session, kind: type[R], slot: Slot, about: Mapping[str, str], sums: Sums) -> None:
    """Add SUMS to the row of KIND that is ABOUT somebody in SLOT."""
    _put(_row(session, kind, {"span": slot.span, "start": slot.start, **about}), sums)


def _put(row: DeviceRollup | GroupRollup, sums: Sums) -> None:
    new = added(sums_of(row), sums)
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
