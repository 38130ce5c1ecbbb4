"""Forgets what is old: slots become coarser, rows go. A little at a time, so that nobody waits."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import Row, Table, bindparam, delete, func, select, tuple_
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.rollup_tables import DeviceRollup, GroupRollup
from edgepack_fleet.adapters.tables import (
    ChangeRow,
    DeviceRow,
    EventRow,
    StreamRow,
    TelemetryRow,
)
from edgepack_fleet.core.keeping import Keeping
from edgepack_fleet.core.slots import DAY, FINE, HOUR, SPANS, Slot, coarser
from edgepack_fleet.core.sums import total
from edgepack_fleet.rollups import FIELDS, put, sums_of

__all__ = ["Retention"]

AT_ONCE = 600
"""Rows of one transaction: others wait for it."""
WHOSE = {DeviceRollup: "device_id", GroupRollup: "group_id"}
R = TypeVar("R", DeviceRollup, GroupRollup)
log = logging.getLogger(__name__)


def _go_on(_seconds: float) -> bool:
    return True


class Retention:
    """Keeps DATABASE from growing for ever.

    Args:
        database: What is kept.
        keeping: How long.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, keeping: Keeping, clock: Callable[[], float]) -> None:
        self._database, self._keeping, self._clock = database, keeping, clock

    def run(self, go_on: Callable[[float], bool] = _go_on) -> int:
        """Forget what is old and return how many rows are gone.

        Args:
            go_on: Called after each transaction with the seconds it took; returns whether to go on
                with the next one. The place to let others write.
        """
        now = self._clock()
        keep, gone = self._keeping, 0
        gone += self._coarsen(DeviceRollup, now, go_on)
        gone += self._coarsen(GroupRollup, now, go_on)
        for table, column, days in (
            (TelemetryRow, TelemetryRow.received, keep.raw_days),
            (EventRow, EventRow.received, keep.event_days),
            (ChangeRow, ChangeRow.time, keep.change_days),
        ):
            gone += self._drop(table, go_on, column < now - days * DAY)
        current = select(DeviceRow.boot).where(DeviceRow.id == StreamRow.device_id)
        old_stream = StreamRow.updated < now - keep.stream_days * DAY
        left = StreamRow.boot.not_in(current.scalar_subquery())
        gone += self._drop(StreamRow, go_on, old_stream, left)
        if gone:
            log.info("%d rows were old and are gone, or counted by the hour or the day", gone)
        return gone

    def _coarsen(self, kind: type[R], now: float, go_on: Callable[[float], bool]) -> int:
        keep, gone = self._keeping, 0
        for span in (FINE, HOUR):
            gone += self._fold(kind, span, keep.horizon(span, now), go_on)
        old = (kind.span == DAY, kind.start < keep.horizon(DAY, now))
        return gone + self._drop(kind, go_on, *old)

    def _repeat(self, step: Callable[[Session], int], go_on: Callable[[float], bool]) -> int:
        """Do STEP, a transaction each time, until nothing is left or it is not to GO_ON."""
        gone = 0
        while True:
            began = time.monotonic()
            with self._database.write() as session:
                done = step(session)
            gone += done
            if not done or not go_on(time.monotonic() - began):
                return gone

    def _fold(
        self, kind: type[R], span: int, horizon: float, go_on: Callable[[float], bool]
    ) -> int:
        """Count slots of SPAN from before HORIZON in the next longer ones instead."""
        # A longer slot is made of whole ones: what is folded now is not asked for in part.
        longer = SPANS[SPANS.index(span) + 1]
        before = int(horizon // longer) * longer

        def step(session: Session) -> int:
            old = (kind.span == span, kind.start < before)
            oldest = session.scalar(select(func.min(kind.start)).where(*old))
            into = None if oldest is None else coarser(Slot(span, oldest))
            return 0 if into is None else _fold_into(session, kind, span, into)

        return self._repeat(step, go_on)

    def _drop(self, table: Any, go_on: Callable[[float], bool], *old: Any) -> int:
        keys = tuple_(*table.__mapper__.primary_key)

        def step(session: Session) -> int:
            some = select(*table.__mapper__.primary_key).where(*old).limit(AT_ONCE)
            dropped = session.execute(
                delete(table).where(keys.in_(some)),
                execution_options={"synchronize_session": False},
            )
            return int(dropped.rowcount)  # type: ignore[attr-defined]  # a cursor's, of a DELETE

        return self._repeat(step, go_on)


def _fold_into(session: Session, kind: type[R], span: int, into: Slot) -> int:
    """Count slots of SPAN that lie in the longer slot INTO there, and return how many they were."""
    table = cast("Table", kind.__table__)
    names: tuple[str, ...] = ("bundle", "digest", WHOSE[kind])
    inside = (kind.span == span, kind.start >= into.start, kind.start < into.end)
    # In this order, all slots of a device are next to each other, and become one.
    order = [table.c[name] for name in reversed(names)]
    query = select(*(table.c[name] for name in ("start", *names, *FIELDS))).where(*inside)
    rows: Sequence[Row[Any]] = session.execute(
        query.order_by(*order).limit(AT_ONCE).with_for_update()
    ).all()
    parts: dict[tuple[str, ...], list[Row[Any]]] = defaultdict(list)
    for row in rows:
        parts[tuple(getattr(row, name) for name in names)].append(row)
    for whose, some in parts.items():
        about = dict(zip(names, whose, strict=True))
        put(session, kind, into, about, total(sums_of(row) for row in some))
    same = [table.c[name] == bindparam(f"old_{name}") for name in ("start", *names)]
    keys = [{f"old_{name}": getattr(row, name) for name in ("start", *names)} for row in rows]
    session.connection().execute(delete(table).where(table.c.span == span, *same), keys)
    return len(rows)
