"""Notes every change that others are told of, in the transaction that makes it.

So what is told has happened, and what has happened is told, whatever is killed when. Only rows
that are changed as objects are seen, not those of a statement that updates many at once.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import event, func, insert, inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from edgepack_fleet.adapters.alert_tables import AlertRow
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.device_tables import ApplicantRow
from edgepack_fleet.adapters.tables import Base, ChangeRow, DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core import changes

__all__ = ["Feed"]

KEPT = 20_000
"""Changes that are kept for who was away."""
NEW = "edgepack_changes"
Follower = Callable[[Session, float, Sequence[tuple[int, changes.Change]]], None]


class Feed:
    """All changes, in the order in which they happened.

    Args:
        database: Where they happen, and are kept.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._followers: list[Follower] = []
        self._listeners: set[Callable[[], None]] = set()
        self._lock = threading.Lock()
        self._newest = 0
        self.closed = False
        """Whether nothing more is told."""
        event.listen(database.sessions, "after_flush", self._note)
        event.listen(database.sessions, "after_commit", self._tell)

    def follow(self, follower: Follower) -> None:
        """Call FOLLOWER in the transaction of every change, with its time and what is new."""
        self._followers.append(follower)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call LISTENER, which must not wait, from any thread after every change."""
        with self._lock:
            self._listeners.add(listener)

    def leave(self, listener: Callable[[], None]) -> None:
        """Do not call LISTENER any more."""
        with self._lock:
            self._listeners.discard(listener)

    def close(self) -> None:
        """Let everybody who listens go."""
        self.closed = True
        self._call()

    def after(self, number: int, limit: int) -> list[ChangeRow]:
        """Return at most LIMIT changes after NUMBER, in order."""
        query = select(ChangeRow).where(ChangeRow.id > number).order_by(ChangeRow.id).limit(limit)
        with self._database.read() as session:
            return list(session.scalars(query))

    def ends(self) -> tuple[int, int]:
        """Return the numbers of the oldest and of the newest change that is kept; 0: none."""
        with self._database.read() as session:
            found = session.execute(select(func.min(ChangeRow.id), func.max(ChangeRow.id))).one()
        return found[0] or 0, found[1] or 0

    def look(self) -> None:
        """Tell who listens of changes that other workers have made."""
        if not self._database.is_shared:
            return
        newest = self.ends()[1]
        if newest > self._newest:
            self._newest = newest
            self._call()

    def trim(self) -> None:
        """Forget what is old."""
        newest = self.ends()[1]
        with self._database.write() as session:
            for row in session.scalars(select(ChangeRow).where(ChangeRow.id <= newest - KEPT)):
                session.delete(row)

    def _note(self, session: Session, _context: Any) -> None:
        now = self._clock()
        found = [
            change
            for row in (*session.new, *session.dirty)
            for change in _changes_of(row, new=row in session.new)
        ]
        if not found:
            return
        rows = [
            {"time": now, "type": kind, "subject": subject, "data": data}
            for kind, subject, data in found
        ]
        self._database.number_in_order(session)
        numbered = insert(ChangeRow).returning(ChangeRow.id, sort_by_parameter_order=True)
        numbers = session.scalars(numbered, rows).all()
        for follower in self._followers:
            follower(session, now, list(zip(numbers, found, strict=True)))
        session.info[NEW] = True

    def _tell(self, session: Session) -> None:
        if session.info.pop(NEW, False):
            self._call()

    def _call(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


def _changes_of(row: Base, *, new: bool) -> Iterator[changes.Change]:
    """Yield what is to be told of ROW, which is being written."""
    if not isinstance(row, AlertRow | ApplicantRow | DeviceRow | JobRow | RolloutRow):
        return
    state: Any = inspect(row)
    # Only what was set can have changed: to ask all columns of all rows costs more than the flush.
    changed = frozenset(name for name in state.committed_state if _is_other(state, name))
    if not new and changed.isdisjoint(changes.WATCHED):
        return  # nearly every row: a device was heard of
    facts = {column.key: getattr(row, column.key) for column in state.mapper.column_attrs}
    if isinstance(row, AlertRow):
        yield from changes.of_alert(facts, changed)
    elif isinstance(row, DeviceRow):
        yield from changes.of_device(facts | {"group": row.group_id}, changed, new=new)
    elif isinstance(row, ApplicantRow):
        yield from changes.of_applicant(facts | {"group": row.group_id}, changed, new=new)
    elif isinstance(row, JobRow):
        more = {"device": row.device_id, "rollout": row.rollout_id}
        yield from changes.of_job(facts | more, changed, new=new)
    else:
        yield from changes.of_rollout(facts | {"group": row.group_id}, changed, new=new)


def _is_other(state: Any, name: str) -> bool:
    """Return whether the column NAME has another value than before it was set."""
    return bool(state.get_history(name, PASSIVE_NO_INITIALIZE).has_changes())
