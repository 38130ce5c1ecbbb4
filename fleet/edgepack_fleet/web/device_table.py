"""The table of devices: filters, order and one page of it, all done by the database."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field
from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.membership import inside
from edgepack_fleet.web import conditions, schemas, views
from edgepack_fleet.web.queries import Name

__all__ = ["Asked", "Table", "choices", "every", "read"]

SORTS = {
    "id": DeviceRow.id,
    "group": DeviceRow.group_id,
    "bundle": DeviceRow.bundle,
    "seen": DeviceRow.seen,
    "inferences": DeviceRow.inferences,
    "errors": DeviceRow.errors,
}
AT_ONCE = 1000
Sort = Literal[
    "id", "-id", "group", "-group", "bundle", "-bundle", "seen", "-seen", "inferences",
    "-inferences", "errors", "-errors",
]  # fmt: skip
State = Literal["", "online", "offline", "failed", "behind", "revoked"]


def _number(text: object) -> object:
    """Return TEXT as a number; the first page for what is none, as people edit addresses."""
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 8 else 1


class Asked(BaseModel):
    """What somebody wants to see; in the address, so that it can be kept and sent."""

    q: Annotated[str, Field(max_length=200)] = ""
    state: State = ""
    group: Name = ""
    release: Name = ""
    tag: Annotated[str, Field(max_length=400)] = ""
    """`KEY` or `KEY=VALUE`."""
    sort: Sort = "id"
    page: Annotated[int, BeforeValidator(_number), Field(ge=1)] = 1
    size: Literal["25", "50", "100", "250"] = "50"

    @property
    def filtered(self) -> bool:
        """Whether anything is left out."""
        return bool(self.q or self.state or self.group or self.release or self.tag)


@dataclass(frozen=True, slots=True)
class Table:
    """One page of the table."""

    rows: Sequence[schemas.Device]
    total: int
    """Devices that pass the filters."""
    page: int
    pages: int
    first: int
    """Number of the first row, from 1."""


def read(session: Session, asked: Asked) -> Table:
    """Return the page that is ASKED for; the last one if there are not so many."""
    query = _filtered(session, asked)
    total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
    size = int(asked.size)
    pages = max(1, math.ceil(total / size))
    page = min(asked.page, pages)
    rows = session.scalars(_ordered(query, asked).offset((page - 1) * size).limit(size)).all()
    return Table(views.devices(session, rows), total, page, pages, (page - 1) * size + 1)


def every(session: Session, asked: Asked) -> Sequence[schemas.Device]:
    """Return all devices that pass the filters, in order."""
    return views.devices(session, session.scalars(_ordered(_filtered(session, asked), asked)).all())


def choices(session: Session) -> tuple[Sequence[str], Sequence[str]]:
    """Return all groups, and all releases that devices report."""
    groups = session.scalars(select(GroupRow.id).order_by(GroupRow.id)).all()
    reported = select(DeviceRow.bundle).where(DeviceRow.bundle.is_not(None)).distinct()
    return groups, sorted(filter(None, session.scalars(reported)))


def _ordered(query: Select[DeviceRow], asked: Asked) -> Select[DeviceRow]:
    column = SORTS[asked.sort.removeprefix("-")]
    return query.order_by(column.desc() if asked.sort[0] == "-" else column.asc(), DeviceRow.id)


def _filtered(session: Session, asked: Asked) -> Select[DeviceRow]:
    query = select(DeviceRow)
    if asked.group:
        query = query.where(inside(session, asked.group))
    if asked.release:
        query = query.where(DeviceRow.bundle == asked.release)
    if asked.tag:
        key, equals, value = (part.strip() for part in asked.tag.partition("="))
        tag = DeviceRow.tags[key].as_string()
        query = query.where(tag == value if equals else tag.is_not(None))
    for word in asked.q.split():
        columns = (DeviceRow.id, DeviceRow.group_id, DeviceRow.bundle, DeviceRow.agent)
        query = query.where(or_(*(c.icontains(word, autoescape=True) for c in columns)))
    return query if not asked.state else query.where(_in_state(session, asked.state))


def _in_state(session: Session, state: str) -> ColumnElement[bool]:
    here = DeviceRow.revoked.is_(None)
    if state == "failed":
        return conditions.attention()
    if state == "behind":
        return and_(here, conditions.behind(session))
    if state == "revoked":
        return ~here
    return and_(here, DeviceRow.online.is_(state == "online"))
