"""Which devices are in which groups, as the rows say at this moment. Keeps nothing.

A group that is a filter has no list of its members: whoever asks gets those that fit now, so that
no fact can change behind a list's back.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Row, bindparam, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from edgepack.errors import UsageError
from edgepack_fleet.adapters.device_tables import GroupMember
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.core.filters import Filter, fields_of, parse_filter
from edgepack_fleet.core.fitting import Fact, Facts, Group, fits, groups_of

__all__ = [
    "alive_in",
    "devices_of",
    "everybody",
    "facts_of",
    "fitting",
    "group_of",
    "inside",
    "is_home",
    "known_group",
    "memberships",
    "put_into",
    "seek",
    "sizes",
    "static_group",
    "unknown_device",
    "unknown_group",
]

AT_ONCE = 1000
"""Ids in one query; databases take a few thousand at most."""
COLUMNS: Mapping[str, InstrumentedAttribute[Any]] = {
    "id": DeviceRow.id,
    "name": DeviceRow.name,
    "group": DeviceRow.group_id,
    "online": DeviceRow.online,
    "bundle": DeviceRow.bundle,
    "target": DeviceRow.inventory,
    "agent": DeviceRow.agent,
    "revoked": DeviceRow.revoked,
    "override": DeviceRow.override,
    "tag": DeviceRow.tags,
    "inventory": DeviceRow.inventory,
}
"""Where the facts of each kind of field are."""
Known = DeviceRow | Row[Any]
"""A device, or of its columns those that are looked at."""
R = TypeVar("R", DeviceRow, Row[Any])


def group_of(row: GroupRow) -> Group:
    """Return the group of ROW."""
    return Group(row.id, parse_filter(row.filter) if row.filter else None)


def unknown_group(session: Session, group: str) -> UsageError:
    """Return the error for a group that does not exist."""
    known = ", ".join(session.scalars(select(GroupRow.id).order_by(GroupRow.id)))
    return UsageError(
        f"no group {group!r}",
        why=f"there are: {known}" if known else "there is none yet",
        fix=f"edgepack fleet groups create {group}",
        reason="unknown_group",
    )


def known_group(session: Session, group: str) -> GroupRow:
    """Return the row of GROUP.

    Raises:
        UsageError: there is none (`unknown_group`).
    """
    row = session.get(GroupRow, group)
    if row is None:
        raise unknown_group(session, group)
    return row


def static_group(session: Session, group: str) -> GroupRow:
    """Return the row of a GROUP that devices can be put into.

    Raises:
        UsageError: there is none (`unknown_group`), or it is a filter (`filter_group`).
    """
    row = known_group(session, group)
    if row.filter:
        raise UsageError(
            f"nothing can be put into group {group}",
            why=f"it has the devices that fit {row.filter!r}",
            fix="tag the device so that it fits, or take a group without a filter",
            reason="filter_group",
        )
    return row


def unknown_device(device: str) -> UsageError:
    """Return the error for a device that does not exist."""
    return UsageError(
        f"no device {device!r}", fix="edgepack fleet devices list", reason="unknown_device"
    )


def put_into(group: str) -> ColumnElement[bool]:
    """Return the condition that a device was put into GROUP: enrolled into it, or added."""
    added = select(GroupMember.device_id).where(GroupMember.group_id == group)
    return or_(DeviceRow.group_id == group, DeviceRow.id.in_(added))


def inside(session: Session, group: str) -> ColumnElement[bool]:
    """Return the condition that a device is in GROUP, be it a list or a filter."""
    row = session.get(GroupRow, group)
    if row is None or not row.filter:
        return put_into(group)
    ids = [found.id for found in seek(session, parse_filter(row.filter))]
    # As literals: a database takes some ten thousand parameters at most.
    return DeviceRow.id.in_(bindparam(None, ids, expanding=True, literal_execute=True))


def is_home(session: Session, group: str | None) -> bool:
    """Return whether just those devices are in GROUP that enrolled into it; None: into any."""
    if group is None:
        return True
    row = session.get(GroupRow, group)
    added = select(GroupMember.device_id).where(GroupMember.group_id == group).limit(1)
    return not (row and row.filter) and session.scalar(added) is None


def alive_in(session: Session, group: str, *columns: Any) -> Sequence[Row[Any]]:
    """Return COLUMNS of the devices of GROUP that are not revoked, by id; none without a group."""
    row = session.get(GroupRow, group)
    if row is not None and row.filter:
        wanted = parse_filter(row.filter)
        every = _read(session, fields_of(wanted), DeviceRow.revoked, *columns)
        return fitting(session, wanted, [found for found in every if found.revoked is None])
    query = select(*columns).where(put_into(group), DeviceRow.revoked.is_(None))
    return session.execute(query.order_by(DeviceRow.id)).all()


def devices_of(session: Session, ids: Sequence[str], *columns: Any) -> list[Row[Any]]:
    """Return COLUMNS of the devices of IDS, which are in order."""
    found: list[Row[Any]] = []
    for some in _portions(ids):
        query = select(*columns).where(DeviceRow.id.in_(some)).order_by(DeviceRow.id)
        found += session.execute(query)
    return found


def seek(session: Session, wanted: Filter) -> list[Row[Any]]:
    """Return of every device that is WANTED its id, and what the filter looks at, by id."""
    return fitting(session, wanted, _read(session, fields_of(wanted)))


def _read(session: Session, fields: frozenset[str], *also: Any) -> Sequence[Row[Any]]:
    """Return of every device its id, what FIELDS are about, and ALSO that."""
    columns = dict.fromkeys((*_columns(fields), *also))
    return session.execute(select(*columns).order_by(DeviceRow.id)).all()


def _columns(fields: frozenset[str]) -> list[Any]:
    """Return the id of a device, and where those facts are that FIELDS are about."""
    # Only what is asked for is read: documents cost more than all the rest.
    kinds = {field.partition(".")[0] for field in fields}
    return list(dict.fromkeys((DeviceRow.id, *(COLUMNS[kind] for kind in sorted(kinds)))))


def sizes(session: Session, groups: Sequence[GroupRow]) -> dict[str, tuple[int, int]]:
    """Return of each of GROUPS, which are filters, how many devices are in it and how many online.

    Every device is read once, however many groups there are.
    """
    wanted = {row.id: parse_filter(row.filter) for row in groups}
    found = dict.fromkeys(wanted, (0, 0))
    if not wanted:
        return found
    rows = _read(session, frozenset().union(*map(fields_of, wanted.values())), DeviceRow.online)
    for group, one in wanted.items():
        inside = fitting(session, one, rows)
        found[group] = len(inside), sum(row.online for row in inside)
    return found


def fitting(session: Session, wanted: Filter, rows: Sequence[R]) -> list[R]:
    """Return those of ROWS, devices or what is needed of them, that are WANTED."""
    put = _put(session, rows) if "group" in fields_of(wanted) else {}
    return [row for row in rows if fits(wanted, facts_of(row, put.get(row.id, frozenset())))]


def memberships(
    session: Session, ids: Sequence[str], only: Collection[str] | None = None
) -> dict[str, frozenset[str]]:
    """Return the groups that each device of IDS is in, or those ONLY of them."""
    groups = _groups(session, only)
    rows = devices_of(session, ids, *_columns(_looked_at(groups) | {"group"}))
    return _memberships(session, rows, groups)


def everybody(
    session: Session, only: Collection[str], *also: Any
) -> tuple[Sequence[Row[Any]], dict[str, frozenset[str]]]:
    """Return of every device its id and ALSO that, by id, and which groups of ONLY it is in."""
    groups = _groups(session, only)
    rows = _read(session, _looked_at(groups) | {"group"}, *also)
    return rows, _memberships(session, rows, groups)


def _groups(session: Session, only: Collection[str] | None) -> list[Group]:
    every = session.scalars(select(GroupRow))
    return [group_of(row) for row in every if only is None or row.id in only]


def _looked_at(groups: Sequence[Group]) -> frozenset[str]:
    """Return the fields that the filters of GROUPS look at."""
    filters = [group.filter for group in groups if group.filter is not None]
    return frozenset().union(*map(fields_of, filters))


def _memberships(
    session: Session, rows: Sequence[Known], groups: Sequence[Group]
) -> dict[str, frozenset[str]]:
    put = _put(session, rows)
    return {row.id: groups_of(groups, facts_of(row, put[row.id])) for row in rows}


def facts_of(row: Known, put: frozenset[str]) -> Facts:
    """Return what is known of the device of ROW, which was PUT into these groups."""

    def fact(field: str) -> Fact:
        kind, _, key = field.partition(".")
        if kind == "tag":
            value = row.tags.get(key)
            return None if value is None else str(value)
        if kind == "inventory":
            return _inside(row.inventory, key)
        if kind == "group":
            return put
        if kind == "target":
            return next(iter(row.inventory.get("runtimes", {})), None)
        if kind == "revoked":
            return row.revoked is not None
        found: Fact = getattr(row, kind)
        return found

    return fact


def _inside(found: object, key: str) -> Fact:
    """Return what is at KEY of an inventory; of a list its members, of an object its names."""
    while key and isinstance(found, Mapping):
        name, _, rest = (key, "", "") if key in found else key.partition(".")
        found, key = found.get(name), rest
    if key:
        return None
    if isinstance(found, list | tuple | Mapping):
        return frozenset(map(str, found))
    return found if isinstance(found, str | int | float) else None


def _put(session: Session, rows: Sequence[Known]) -> dict[str, frozenset[str]]:
    """Return the groups that each device of ROWS was put into."""
    found: dict[str, set[str]] = defaultdict(set)
    ids = [row.id for row in rows]
    for some in _portions(ids):
        query = select(GroupMember.device_id, GroupMember.group_id)
        for device, group in session.execute(query.where(GroupMember.device_id.in_(some))):
            found[device].add(group)
    return {row.id: frozenset({row.group_id, *found.get(row.id, ())}) for row in rows}


def _portions(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[begin : begin + AT_ONCE] for begin in range(0, len(ids), AT_ONCE))
