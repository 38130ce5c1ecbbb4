"""Telemetry in the database: added up as it comes, in the transaction that notes its arrival.

A report is counted once or not at all, and three times over: for its device, for its group, and
for its group since the beginning. Edges and names are those that its model is expected to have, so
that one odd device does not change what is known of the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from sqlalchemy import Row, func, inspect, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from edgepack.counting import OTHER
from edgepack.messages import Telemetry
from edgepack_fleet.adapters.rollup_tables import EVER, DeviceRollup, GroupRollup, Rollup
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core.expectation import Expected
from edgepack_fleet.core.slots import Slot, slot_of
from edgepack_fleet.core.sums import Sums, added, fitted, of_report

__all__ = ["FIELDS", "count", "forget", "put", "sums_of"]

LARGEST = 2**53
"""What a counter stops at: beyond this, neither JSON readers nor databases agree."""
MAX_UNPUBLISHED = 256
"""Models that were not published here and are told apart in one group; the rest is `OTHER`."""
FIELDS = tuple(f.name for f in fields(Sums))
ZERO: dict[str, Any] = {
    "reasons": {},
    "classes": {},
    "features": {},
    "latency": None,
    "confidence": None,
}
R = TypeVar("R", DeviceRollup, GroupRollup)


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
    put(session, DeviceRollup, slot, about | {"device_id": device.id}, sums)
    put(session, GroupRollup, slot, group, sums)
    # Bins of features mean nothing beyond their baseline, and are not asked for over all time.
    put(session, GroupRollup, Slot(EVER, 0), group, sums)
    return odd


def put(session: Session, kind: type[R], slot: Slot, about: Mapping[str, str], sums: Sums) -> None:
    """Add SUMS to the row of KIND that is ABOUT somebody in SLOT."""
    row = _row(session, kind, {"span": slot.span, "start": slot.start, **about})
    new = added(sums_of(row), sums)
    for name in FIELDS:
        value = getattr(new, name)
        setattr(row, name, min(LARGEST, value) if isinstance(value, int) else value)


def forget(session: Session) -> None:
    """Hold no row any more, after a savepoint in which some were made has been rolled back."""
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


def _held(session: Session, kind: type[R], key: Mapping[str, Any]) -> R | None:
    mapper = inspect(kind)
    place = tuple(key[column.name] for column in mapper.primary_key)
    return session.identity_map.get(mapper.identity_key_from_primary_key(place))


def _row(session: Session, kind: type[R], key: Mapping[str, Any]) -> R:
    """Return the row of KEY, made if there is none; no other transaction changes it meanwhile."""
    held = _held(session, kind, key)
    if held is not None:
        return held  # locked since this transaction read it
    # What is held already is written once, at the end: written now, it would be read again later.
    with session.no_autoflush:
        row = session.get(kind, key, with_for_update=True)
        if row is None:
            nothing = {name: getattr(Sums(), name) for name in FIELDS}
            _insert_if_missing(session, kind, [{**key, **nothing, **ZERO}])
            row = session.get_one(kind, key, with_for_update=True)
    return row


def _insert_if_missing(session: Session, kind: type[R], rows: Iterable[dict[str, Any]]) -> None:
    postgres = session.get_bind().dialect.name == "postgresql"
    made = postgresql.insert(kind) if postgres else sqlite.insert(kind)
    session.execute(made.on_conflict_do_nothing(), list(rows))
