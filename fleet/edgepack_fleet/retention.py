"""Forgets what is old: slots become coarser, rows go. A little at a time, so that nobody waits."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import delete, select
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
from edgepack_fleet.core.slots import DAY, FINE, HOUR, Slot, coarser
from edgepack_fleet.rollups import put, sums_of

__all__ = ["Retention"]

AT_ONCE = 500
"""Rows of one transaction: others wait for it."""
MOST = 40
"""Transactions of one table in one turn; the next turn goes on."""
WHOSE = {DeviceRollup: "device_id", GroupRollup: "group_id"}
R = TypeVar("R", DeviceRollup, GroupRollup)
log = logging.getLogger(__name__)


class Retention:
    """Keeps DATABASE from growing for ever.

    Args:
        database: What is kept.
        keeping: How long.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, keeping: Keeping, clock: Callable[[], float]) -> None:
        self._database, self._keeping, self._clock = database, keeping, clock

    def run(self) -> int:
        """Forget what is old and return how many rows are gone; some may wait for the next turn."""
        now = self._clock()
        keep, gone = self._keeping, 0
        for kind in (DeviceRollup, GroupRollup):
            for span in (FINE, HOUR):
                gone += self._repeat(self._fold, kind, span, keep.horizon(span, now))
            gone += self._drop(kind, kind.span == DAY, kind.start < keep.horizon(DAY, now))
        for table, column, days in (
            (TelemetryRow, TelemetryRow.received, keep.raw_days),
            (EventRow, EventRow.received, keep.event_days),
            (ChangeRow, ChangeRow.time, keep.change_days),
        ):
            gone += self._drop(table, column < now - days * DAY)
        current = select(DeviceRow.boot).where(DeviceRow.id == StreamRow.device_id)
        old = StreamRow.updated < now - keep.stream_days * DAY
        gone += self._drop(StreamRow, old, StreamRow.boot.not_in(current.scalar_subquery()))
        if gone:
            log.info("%d rows were old and are gone, or counted by the hour or the day", gone)
        return gone

    def _repeat(self, step: Callable[..., int], *about: Any) -> int:
        """Do STEP, a transaction each time, until there is nothing to do or it is enough."""
        gone = 0
        for _ in range(MOST):
            with self._database.write() as session:
                done = step(session, *about)
            gone += done
            if done < AT_ONCE:
                break
        return gone

    def _fold(self, session: Session, kind: type[R], span: int, horizon: float) -> int:
        """Count the oldest slots of SPAN in the next longer ones instead."""
        # A longer slot is made of whole ones: what is folded now is not asked for in part.
        longer = coarser(Slot(span, int(horizon // span) * span))
        before = longer.start if longer else horizon
        query = select(kind).where(kind.span == span, kind.start < before)
        rows = session.scalars(query.order_by(kind.start).limit(AT_ONCE).with_for_update()).all()
        for row in rows:
            slot = coarser(Slot(row.span, row.start))
            if slot is not None:
                whose = WHOSE[kind]
                about = {name: getattr(row, name) for name in ("bundle", "digest", whose)}
                put(session, kind, slot, about, sums_of(row))
                session.delete(row)
        return len(rows)

    def _drop(self, table: Any, *old: Any) -> int:
        keys = list(table.__mapper__.primary_key)

        def step(session: Session) -> int:
            found = session.execute(select(*keys).where(*old).limit(AT_ONCE)).all()
            for key in found:
                same = [column == value for column, value in zip(keys, key, strict=True)]
                session.execute(delete(table).where(*same))
            return len(found)

        return self._repeat(step)
