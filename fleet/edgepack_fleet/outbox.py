"""What decisions left to say to devices: sent, then forgotten once the broker has it.

Several workers send at once, each other rows. On PostgreSQL those of a worker are locked until it
is through, so that those of one that is killed are free again at once. A message may be said
twice: it is a hint.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import OutboxRow

__all__ = ["empty"]

BATCH = 200
Publish = Callable[[Sequence[tuple[str, bytes]]], list[bool]]


def empty(database: Database, publish: Publish) -> None:
    """Send the next rows of the outbox; one goes only when the broker has its message.

    Args:
        database: Where they are.
        publish: Sends pairs of topic and payload, and says of each whether the broker has it.
    """
    if database.is_shared:
        with database.write_apart() as session:
            _forget(session, _send(session, publish))
        return
    # Nobody else sends, and others must not wait for our broker before they may write.
    with database.read() as session:
        gone = _send(session, publish)
    if gone:
        with database.write() as session:
            _forget(session, gone)


def _send(session: Session, publish: Publish) -> list[int]:
    """Return the ids of the rows that are sent."""
    query = select(OutboxRow).order_by(OutboxRow.id).limit(BATCH)
    rows = session.scalars(query.with_for_update(skip_locked=True)).all()
    sent = publish([(row.topic, row.payload) for row in rows]) if rows else []
    return [row.id for row, taken in zip(rows, sent, strict=True) if taken]


def _forget(session: Session, gone: Sequence[int]) -> None:
    if gone:
        session.execute(delete(OutboxRow).where(OutboxRow.id.in_(gone)))
