"""When devices came and went: written down with the change itself, kept for a while."""

from collections.abc import Callable, Sequence

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.device_tables import ConnectionRow
from edgepack_fleet.adapters.feed import Feed
from edgepack_fleet.core.changes import Change

__all__ = ["Connections"]

KEPT_S = 90 * 86_400.0
ONLINE = {"edgepack.device.online": True, "edgepack.device.offline": False}


class Connections:
    """Keeps the comings and goings of devices.

    Args:
        database: Where they are kept.
        feed: Tells them, in the transaction in which they happen.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, feed: Feed, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        feed.follow(_keep)

    def tidy(self) -> None:
        """Forget what is old."""
        with self._database.write() as session:
            old = ConnectionRow.time < self._clock() - KEPT_S
            session.execute(delete(ConnectionRow).where(old))


def _keep(session: Session, now: float, news: Sequence[tuple[int, Change]]) -> None:
    rows = [
        {"device_id": data["id"], "time": now, "online": ONLINE[kind]}
        for _, (kind, _, data) in news
        if kind in ONLINE
    ]
    if rows:
        session.execute(insert(ConnectionRow), rows)
