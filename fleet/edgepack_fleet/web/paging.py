"""One page of a list: rows after a cursor, in a fixed order, so that none is told twice.

A page begins after the last row of the one before, whatever was added or removed meanwhile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from edgepack.errors import UsageError
from edgepack_fleet.core import cursors
from edgepack_fleet.web.queries import ListQuery

__all__ = ["Order", "of_rows", "of_sequence"]

Order = Mapping[str, Sequence[InstrumentedAttribute[Any]]]
"""Columns by the name a list is sorted by; the last ones of each are unique together."""
R = TypeVar("R")
Keep = Callable[[Sequence[R]], Sequence[R]]
SCANNED = 2000
"""Rows that are read at once to find those that are wanted."""


def of_rows(
    session: Session,
    kind: type[R],
    filters: Sequence[tuple[bool, ColumnElement[bool]]],
    order: Order,
    asked: ListQuery,
    keep: Keep[R] | None = None,
) -> tuple[Sequence[R], str | None]:
    """Return the page of rows that is ASKED for, and the cursor of the next; None: the last.

    Args:
        session: A database session.
        kind: The table.
        filters: Conditions, and whether each is asked for.
        order: How it may be sorted.
        asked: Sort, cursor and limit.
        keep: Returns those of some rows that are wanted, where no condition can say it.

    Raises:
        UsageError: the cursor is of another list (`bad_cursor`).
    """
    query = select(kind).where(*(condition for wanted, condition in filters if wanted))
    down = asked.sort.startswith("-")
    columns = order[asked.sort.removeprefix("-")]
    query = query.order_by(*(c.desc() if down else c.asc() for c in columns))
    after: cursors.Key | None = None
    if asked.cursor is not None:
        after = cursors.unpack(asked.cursor, asked.sort, [c.type.python_type for c in columns])
    size = asked.limit + 1 if keep is None else SCANNED
    rows: list[R] = []
    while len(rows) <= asked.limit:
        here = tuple_(*columns)
        some = query if after is None else query.where(here < after if down else here > after)
        found = session.scalars(some.limit(size)).all()
        rows += found if keep is None else keep(found)
        if len(found) < size:
            break
        after = _key(found[-1], columns)
    page = rows[: asked.limit]
    return page, cursors.pack(asked.sort, _key(page[-1], columns)) if page != rows else None


def _key(row: object, columns: Sequence[InstrumentedAttribute[Any]]) -> cursors.Key:
    return tuple(getattr(row, column.key) for column in columns)


def of_sequence(
    found: Sequence[R], name: Callable[[R], str], asked: ListQuery
) -> tuple[Sequence[R], str | None]:
    """Return the page of what was FOUND, in its order, that is ASKED for, and the next's cursor.

    Args:
        found: Everything.
        name: Returns what tells one from all others.
        asked: A sort that begins with `-` is the order turned round.

    Raises:
        UsageError: the cursor is of another list, or what it stood at is gone (`bad_cursor`).
    """
    ordered = found[::-1] if asked.sort.startswith("-") else found
    begin = 0
    if asked.cursor is not None:
        (after,) = cursors.unpack(asked.cursor, asked.sort, [str])
        begin = next((place for place, r in enumerate(ordered, 1) if name(r) == after), -1)
    if begin < 0:
        raise UsageError("what the cursor stood at is gone", fix="begin again", reason="bad_cursor")
    page = ordered[begin : begin + asked.limit]
    more = begin + asked.limit < len(ordered)
    return page, cursors.pack(asked.sort, (name(page[-1]),)) if more else None
