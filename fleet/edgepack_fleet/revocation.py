"""How a device stops being one: refused here at once, on the list, and off the broker.

Three lines, each of which holds without the others: its certificates are on the revocation list,
which the broker reads at every handshake; its open session is ended; and nothing it says is taken
and nothing is said to it. The database is written first, so that a kill in between is made up for
by the next tick.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from edgepack import topics
from edgepack_fleet import jobrows
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.certificates import serial_of
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.fence import Outcome, end_session
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.request_tables import RequestRow
from edgepack_fleet.adapters.tables import DeviceRow, EventRow, JobRow, OutboxRow
from edgepack_fleet.core import jobs
from edgepack_fleet.membership import unknown_device

__all__ = ["Revocation", "Revoked"]

OURS = "fleet"
"""The boot under which the fleet writes down what it did to a device."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Revoked:
    """A revoked device."""

    device: str
    at: float
    """Unix seconds."""
    session: Outcome
    """What became of its session on the broker; `unreachable`: tried again until it ends."""


class Revocation:
    """Revokes devices and keeps them out.

    Args:
        database: Where it is written down.
        pki: Keeps the revocation list.
        broker: Where sessions are.
        clock: Unix seconds.
    """

    def __init__(
        self, database: Database, pki: Pki, broker: Address, clock: Callable[[], float]
    ) -> None:
        self._database, self._pki, self._broker, self._clock = database, pki, broker, clock
        self._blocked = set(self._load())
        """Changed in place only: what one thread adds, no other may overwrite."""
        self._fencing = threading.Lock()

    def blocks(self, device: str) -> bool:
        """Return whether DEVICE is revoked; asks no database, for every request comes by here."""
        return device in self._blocked

    def revoke(self, device: str, by: str = "") -> Revoked:
        """Revoke DEVICE for good; it may enrol anew, under another name. BY goes on record.

        Raises:
            UsageError: there is no such device.
        """
        with self._fencing:  # a tick in between must not end the session a second time
            row = self._write_down(device, by)
            self._blocked.add(device)
            self._pki.revoke(*_serials(row))
            return Revoked(device, row.revoked or 0.0, self._fence(device))

    def release(self, device: str) -> None:
        """Let the name of DEVICE, which is no more, be another one's."""
        self._blocked.discard(device)

    def tick(self) -> None:
        """End the sessions that are still open."""
        self.learn()
        if not self._fencing.acquire(blocking=False):
            return  # somebody is revoking right now
        try:
            self._fence_the_rest()
        finally:
            self._fencing.release()

    def learn(self) -> None:
        """Learn what other workers have revoked, and whose names are free again."""
        self._blocked.update(self._load())
        if self._fencing.acquire(blocking=False):
            try:
                self._release_the_new()
            finally:
                self._fencing.release()

    def _write_down(self, device: str, by: str) -> DeviceRow:
        now = self._clock()
        with self._database.write() as session:
            row = session.get(DeviceRow, device)
            if row is None:
                raise unknown_device(device)
            if row.revoked is None:
                row.revoked, row.online = now, False
                _end_work(session, device, now)
                _record(session, device, by, now)
            row.fenced = None
        return row

    def _release_the_new(self) -> None:
        """Let in those that have the name of a device another worker took out of service."""
        blocked = list(self._blocked)
        with self._database.read() as session:
            alive = select(DeviceRow.id).where(DeviceRow.revoked.is_(None))
            back = session.scalars(alive.where(DeviceRow.id.in_(blocked))) if blocked else ()
            self._blocked.difference_update(back)

    def _fence_the_rest(self) -> None:
        with self._database.read() as session:
            open_ones = session.scalars(
                select(DeviceRow).where(DeviceRow.revoked.is_not(None), DeviceRow.fenced.is_(None))
            ).all()
        for row in open_ones:
            self._pki.revoke(*_serials(row))
            self._fence(row.id)

    def _fence(self, device: str) -> Outcome:
        outcome = end_session(self._pki, self._broker, device)
        if outcome == "list_ignored":
            log.error(
                "the broker lets revoked devices in: it does not read %s; start it with the "
                "configuration of `edgepack fleet broker`",
                self._pki.trust.path,
            )
        if outcome != "unreachable":
            with self._database.write() as session:
                session.get_one(DeviceRow, device).fenced = self._clock()
            log.warning("%s is revoked and off the broker", device)
        return outcome

    def _load(self) -> frozenset[str]:
        with self._database.read() as session:
            found = session.scalars(select(DeviceRow.id).where(DeviceRow.revoked.is_not(None)))
            return frozenset(found)


def _serials(row: DeviceRow) -> list[str]:
    pending = row.pending_certificate
    newer = [serial_of(x509.load_pem_x509_certificate(pending.encode()))] if pending else []
    return [row.certificate_serial, *newer]


def _end_work(session: Session, device: str, now: float) -> None:
    """Cancel what DEVICE has to do and to answer, and forget what was to be said to it."""
    mine = select(JobRow).where(JobRow.device_id == device, JobRow.status.in_(jobrows.OPEN))
    for job in session.scalars(mine):
        jobrows.apply_job(job, jobs.end(jobrows.job_state(job), "CANCELED", "device_revoked"), now)
    asked = RequestRow.device_id == device, RequestRow.status.in_(jobrows.OPEN)
    ended = {"status": "CANCELED", "reason": "device_revoked", "updated": now}
    session.execute(update(RequestRow).where(*asked).values(ended))
    session.execute(delete(OutboxRow).where(OutboxRow.topic.startswith(topics.down(device, ""))))


def _record(session: Session, device: str, by: str, now: float) -> None:
    ours = EventRow.device_id == device, EventRow.boot == OURS
    last = session.scalar(select(func.max(EventRow.seq)).where(*ours))
    session.add(
        EventRow(
            device_id=device,
            boot=OURS,
            seq=0 if last is None else last + 1,
            received=now,
            type="revoked",
            body={"ts": now, "type": "revoked", "reason": "revoked", "detail": {"by": by}},
            verified=True,
        )
    )
