"""Driver of requests: asks devices, takes their answers, gives up at the deadline.

A request is saved with the hint at it in one transaction; a device that is away finds it when it
is back. What devices say comes by the uplink, in the uplink's transaction.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack import topics
from edgepack.errors import UsageError
from edgepack.requests import MAX_OPEN, Answer, Kind, Request, RequestList
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.request_tables import RequestRow
from edgepack_fleet.adapters.tables import DeviceRow, OutboxRow
from edgepack_fleet.core.asking import OPEN, counts, in_time, overdue

__all__ = ["KEPT", "LONGEST_S", "Requests", "hint", "listed", "take"]

KEPT = 20
"""Requests of one device that stay after they have ended."""
LONGEST_S = 7 * 86400.0


class Requests:
    """What is asked of devices.

    Args:
        database: Where it is kept.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def create(
        self, device: str, kind: Kind, args: Mapping[str, Any], within_s: float, by: str = ""
    ) -> RequestRow:
        """Ask DEVICE for KIND, to be answered WITHIN_S seconds.

        Raises:
            UsageError: no such device (`unknown_device`), it is revoked (`revoked`), or too much
                waits for it already (`too_many_requests`).
        """
        with self._database.write() as session:
            return self.add(session, device, kind, args, within_s, by)

    def add(
        self,
        session: Session,
        device: str,
        kind: Kind,
        args: Mapping[str, Any],
        within_s: float,
        by: str = "",
    ) -> RequestRow:
        """Do what `create` does, in the transaction of SESSION."""
        now = self._clock()
        self._check(session, device)
        row = RequestRow(
            id=f"q-{secrets.token_hex(8)}",
            device_id=device,
            kind=kind,
            args=dict(args),
            status="QUEUED",
            result={},
            by=by,
            created=now,
            updated=now,
            deadline=now + min(within_s, LONGEST_S),
        )
        session.add(row)
        session.add(hint(device, now))
        _forget_old(session, device)
        return row

    def get(self, request: str) -> RequestRow:
        """Return a request.

        Raises:
            UsageError: there is none of that id (`unknown_request`).
        """
        with self._database.read() as session:
            return _known(session, request)

    def cancel(self, request: str) -> RequestRow:
        """Wait for the answer no more; one that has ended stays as it is.

        Raises:
            UsageError: there is none of that id (`unknown_request`).
        """
        with self._database.write() as session:
            row = _known(session, request)
            if row.status in OPEN:
                now = self._clock()
                row.status, row.updated = "CANCELED", now
                session.add(hint(row.device_id, now))
            return row

    def tick(self, now: float) -> None:
        """Give up what is past its deadline."""
        late = select(RequestRow).where(RequestRow.status.in_(OPEN), RequestRow.deadline <= now)
        with self._database.read() as session:
            if session.scalars(late.limit(1)).first() is None:
                return
        with self._database.write() as session:
            for row in session.scalars(late):
                if overdue(row.status, row.deadline, now):
                    row.status, row.reason, row.updated = "TIMED_OUT", "deadline", now

    def _check(self, session: Session, device: str) -> None:
        found = session.get(DeviceRow, device)
        if found is None:
            raise UsageError(
                f"no device {device!r}", fix="edgepack fleet devices list", reason="unknown_device"
            )
        if found.revoked is not None:
            raise UsageError(f"{device} is revoked", why="it is not asked", reason="revoked")
        waiting = select(func.count()).where(
            RequestRow.device_id == device, RequestRow.status.in_(OPEN)
        )
        if (session.scalar(waiting) or 0) >= MAX_OPEN:
            raise UsageError(
                f"{MAX_OPEN} requests wait for {device} already",
                fix="wait for their answers, or cancel some",
                reason="too_many_requests",
            )


def listed(session: Session, device: str, token: str, now: float) -> RequestList:
    """Return what waits for DEVICE, oldest first, as an answer to TOKEN."""
    query = select(RequestRow).where(
        RequestRow.device_id == device, RequestRow.status.in_(OPEN), RequestRow.deadline > now
    )
    rows = session.scalars(query.order_by(RequestRow.created, RequestRow.id).limit(MAX_OPEN))
    return RequestList(token=token, requests=tuple(_message(row, now) for row in rows))


def take(
    session: Session, device: str, answer: Answer, now: float, *, verified: bool
) -> RequestRow | None:
    """Take ANSWER of DEVICE.

    Returns:
        The request, if the answer changes it: what has ended already stays as it is.
    """
    row = session.get(RequestRow, answer.request)
    if row is None or row.device_id != device or not counts(row.status, answer.status):
        return None
    row.status, row.reason, row.message = answer.status, answer.reason, answer.message
    row.result, row.took_s = answer.result, answer.took_s
    row.verified, row.updated = verified, now
    return row


def hint(device: str, now: float) -> OutboxRow:
    """Return the message that tells DEVICE to ask what is asked; it is a hint and no more."""
    return OutboxRow(topic=topics.down(device, "req/notify"), payload=b'{"v":1}', created=now)


def _message(row: RequestRow, now: float) -> Request:
    return Request(request=row.id, kind=row.kind, args=row.args, left_s=in_time(row.deadline, now))


def _known(session: Session, request: str) -> RequestRow:
    row = session.get(RequestRow, request)
    if row is None:
        raise UsageError(f"no request {request!r}", reason="unknown_request")
    return row


def _forget_old(session: Session, device: str) -> None:
    ended = select(RequestRow).where(RequestRow.device_id == device, RequestRow.status.not_in(OPEN))
    newest = ended.order_by(RequestRow.created.desc(), RequestRow.id)
    for row in session.scalars(newest.offset(KEPT)):
        session.delete(row)
