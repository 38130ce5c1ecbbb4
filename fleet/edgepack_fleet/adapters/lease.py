"""A lease in the database: one holder at a time, by the clock of the database."""

from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.worker_tables import LeaseRow

__all__ = ["LEASE_S", "Lease", "claim"]

LEASE_S = 10.0
"""Seconds for which it holds; who is gone is followed after that."""


def claim(database: Database, fleet: str) -> None:
    """Let DATABASE be that of FLEET for ever: a worker with another data directory has no part.

    Raises:
        UsageError: it is that of another one (reason `other_fleet`).
    """
    with database.write() as session:
        row = session.get(LeaseRow, "fleet")
        if row is None:
            session.add(LeaseRow(name="fleet", holder=fleet, until=0.0))
        elif row.holder != fleet:
            raise UsageError(
                "this database is another fleet's",
                why="the director in its data directory has another root than the one in ours",
                fix="let all workers share one data directory, or give another --database",
                reason="other_fleet",
            )


class Lease:
    """The lease NAME, as HOLDER sees it.

    Args:
        database: Where it is written down.
        name: What is done for all.
        holder: Who wants to do it; no other has that name.
    """

    def __init__(self, database: Database, name: str, holder: str) -> None:
        self._database, self.name, self._holder = database, name, holder

    def take(self) -> bool:
        """Take it or hold it for another `LEASE_S`; return whether it is ours.

        Raises:
            SQLAlchemyError: the database does not answer: it is not known whose it is.
        """
        with self._database.write() as session:
            now = self._database.time(session)
            row = session.get(LeaseRow, self.name)
            if row is None:
                row = LeaseRow(name=self.name, holder="", until=now)
                session.add(row)
            if row.holder != self._holder and now < row.until:
                return False
            row.holder, row.until = self._holder, now + LEASE_S
        return True

    def is_held(self) -> bool:
        """Return whether somebody has it.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        with self._database.read() as session:
            row = session.get(LeaseRow, self.name)
            return row is not None and self._database.time(session) < row.until

    def give_back(self) -> None:
        """Let another have it at once, if it is ours."""
        with self._database.write() as session:
            row = session.get(LeaseRow, self.name)
            if row is not None and row.holder == self._holder:
                row.holder, row.until = "", 0.0
