"""The timeline of one device: jobs, events, connections and what people did, in one order.

Every source is asked for as many rows as fill a page, from the same point on; what is not on the
page is on the next one. Rows of one moment are ordered by source and key, so none is told twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Select,
    and_,
    false,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.device_tables import ConnectionRow
from edgepack_fleet.adapters.tables import AuditRow, DeviceRow, EventRow, JobRow
from edgepack_fleet.core import timeline as say
from edgepack_fleet.core.model import TERMINAL
from edgepack_fleet.core.timeline import Entry, Key, Kind

__all__ = ["KEY_KINDS", "archived_name", "timeline_of"]

KEY_KINDS: tuple[type, ...] = (float, int, str, int)
AFTERWARDS_S = 3600.0
"""Seconds after its end in which somebody still writes about a device that is no more."""


@dataclass(frozen=True, slots=True)
class _Source:
    kind: Kind
    table: Any
    time: Any
    keys: tuple[Any, Any]
    which: ColumnElement[bool]
    tell: Callable[[Any], tuple[str, dict[str, Any]]]


def archived_name(device: str) -> str:
    """Return the name that a device had before it was taken out of service."""
    return device.partition("~")[0]


def timeline_of(
    session: Session,
    device: DeviceRow,
    after: Key | None,
    limit: int,
    *,
    kinds: Sequence[Kind] = (),
    down: bool = True,
) -> list[Entry]:
    """Return LIMIT entries of the timeline of DEVICE at most.

    Args:
        session: A database session.
        device: Its row.
        after: Key of the entry before the first one; None: from the beginning.
        limit: Entries.
        kinds: Only these; none: all.
        down: Newest first.
    """
    found: list[Entry] = []
    for rank, source in enumerate(_sources(device)):
        if not kinds or source.kind in kinds:
            found += _entries(session, rank, source, after, limit, down)
    return sorted(found, key=lambda entry: entry.key, reverse=down)[:limit]


def _entries(
    session: Session, rank: int, source: _Source, after: Key | None, limit: int, down: bool
) -> list[Entry]:
    columns = (source.time, *source.keys)
    changing = [c for c in columns if not isinstance(c, BindParameter)]
    order = [c.desc() if down else c.asc() for c in changing]
    query: Select[Any] = select(source.table, *columns).where(source.which).order_by(*order)
    if after is not None:
        query = query.where(_beyond(rank, columns, after, down))
    entries = []
    for row, time, text, number in session.execute(query.limit(limit)):
        sentence, facts = source.tell(row)
        entries.append(Entry((time, rank, text, number), source.kind, sentence, facts))
    return entries


def _beyond(rank: int, columns: Sequence[Any], after: Key, down: bool) -> ColumnElement[bool]:
    """Return the condition that a row of the source of RANK comes after that key."""
    time, place, *keys = after
    here = tuple_(*columns)
    strictly = columns[0] < time if down else columns[0] > time
    if rank == place:
        return here < (time, *keys) if down else here > (time, *keys)
    first_of_moment = rank < place if down else rank > place
    return or_(strictly, and_(columns[0] == time, true() if first_of_moment else false()))


def _sources(device: DeviceRow) -> list[_Source]:
    """Return the sources; where moments are equal, the first is the earliest."""
    jobs = JobRow.device_id == device.id
    by_id = (JobRow.id, literal(0))
    by_number = (literal(""), AuditRow.id)
    return [
        _Source("audit", AuditRow, AuditRow.time, by_number, _deeds(device), _deed),
        _Source("connection", ConnectionRow, ConnectionRow.time, (literal(""), ConnectionRow.id),
                ConnectionRow.device_id == device.id, _connection),
        _Source("job", JobRow, JobRow.created, by_id, jobs, _job(say.job_given, "QUEUED")),
        _Source("job", JobRow, JobRow.started, by_id, jobs & JobRow.started.is_not(None),
                _job(say.job_begun, "IN_PROGRESS")),
        _Source("event", EventRow, EventRow.received, (EventRow.boot, EventRow.seq),
                EventRow.device_id == device.id, _event),
        _Source("job", JobRow, JobRow.updated, by_id, jobs & JobRow.status.in_(TERMINAL),
                _job(say.job_ended)),
    ]  # fmt: skip


def _deeds(device: DeviceRow) -> ColumnElement[bool]:
    """Return the condition that somebody did something with this device, not one before it."""
    name = archived_name(device.id)
    paths = [f"/api/v1/devices/{name}/", f"/devices/{name}/"]
    about = or_(*(AuditRow.path.startswith(path, autoescape=True) for path in paths))
    mine = and_(about, AuditRow.status < 400, AuditRow.time >= device.enrolled)
    if name == device.id or device.revoked is None:
        return mine
    return and_(mine, AuditRow.time <= device.revoked + AFTERWARDS_S)


def _deed(row: AuditRow) -> tuple[str, dict[str, Any]]:
    facts = {"action": row.action, "by": row.name, "role": row.role}
    return say.done(row.action, row.name), facts


def _connection(row: ConnectionRow) -> tuple[str, dict[str, Any]]:
    return say.connected(online=row.online), {"online": row.online}


def _event(row: EventRow) -> tuple[str, dict[str, Any]]:
    return say.happened(row.type, row.body), {"type": row.type, "verified": row.verified}


def _job(
    tell: Callable[[say.Facts], str], moment: str = ""
) -> Callable[[JobRow], tuple[str, dict[str, Any]]]:
    """Return what tells of a job at the MOMENT in which it had that status; empty: its last."""
    names = ("id", "rollout_id", "release", "kind", "attempt", "wave", "status", "reason")

    def told(row: JobRow) -> tuple[str, dict[str, Any]]:
        job = {name: getattr(row, name) for name in names}
        facts = {"job": row.id, "rollout": row.rollout_id, "release": row.release}
        return tell(job), facts | {"status": moment or row.status}

    return told
