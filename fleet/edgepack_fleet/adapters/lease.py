"""A lease in the database: one holder at a time, by the clock of the database."""

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.worker_tables import LeaseRow

__all__ = ["LEASE_S", "Lease"]

LEASE_S = 10.0
"""Seconds for which it holds; who is gone is followed after that."""


class Lease:
    """The lease NAME, as HOLDER sees it.

    Args:
        database: Where it is written down.
        name: What is done for all.
        holder: Who wants to do it; no other has that name.
    """

    def __init__(self, database: Database, name: str, holder: str) -> None:
        self._database, self._name, self._holder = database, name, holder

    def take(self, patience: float = 0.0) -> bool:
        """Take it or hold it for another `LEASE_S`; return whether it is ours.

        Args:
            patience: Seconds for which one that is over is left to others first.

        Raises:
            SQLAlchemyError: the database does not answer: it is not known whose it is.
        """
        with self._database.write() as session:
            now = self._database.time(session)
            row = session.get(LeaseRow, self._name)
            if row is None:
                row = LeaseRow(name=self._name, holder="", until=now)
                session.add(row)
            if row.holder != self._holder and now < row.until + patience:
                return False
            row.holder, row.until = self._holder, now + LEASE_S
        return True

    def give_back(self) -> None:
        """Let another have it at once, if it is ours."""
        with self._database.write() as session:
            row = session.get(LeaseRow, self._name)
            if row is not None and row.holder == self._holder:
                row.holder, row.until = "", 0.0
