"""How the fleet's certificate authority is replaced while devices go on.

Three steps, each when every device has followed the one before: the next authority is announced
beside the old one; it issues, and the servers show its certificates; the old one is believed no
more. Devices are told by a hint, fetch the authorities with a new certificate, and say in their
births what they believe.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select

from edgepack import messages, topics
from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.pki import Pki
from edgepack_fleet.adapters.tables import DeviceRow, OutboxRow
from edgepack_fleet.renewals import Renewals

__all__ = ["Authorities", "Standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a replacement is."""

    issuing: str
    trusted: tuple[str, ...]
    next: str | None
    """Announced and not issuing yet."""
    sha256: str
    """Of the one that issues: what new enrolment tokens pin."""
    devices: int
    behind: tuple[str, ...]
    """Devices that have not followed the last step."""


class Authorities:
    """Takes the steps.

    Args:
        database: Where devices are kept.
        pki: The authorities.
        renewals: Knows which devices have followed.
        renewed: Called when our own certificates must follow.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        pki: Pki,
        renewals: Renewals,
        renewed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._database, self._pki, self._renewals = database, pki, renewals
        self._renewed, self._clock = renewed, clock

    def standing(self) -> Standing:
        """Return where the replacement is."""
        with self._database.read() as session:
            query = select(DeviceRow).where(DeviceRow.revoked.is_(None)).order_by(DeviceRow.id)
            rows = session.scalars(query).all()
        # One that has a newer certificate and has not come with it yet is still on its way.
        behind = [
            row.id
            for row in rows
            if not row.trusts or row.pending_certificate or self._renewals.outdated(row)
        ]
        return Standing(
            issuing=self._pki.issuing,
            trusted=tuple(self._pki.authorities),
            next=self._pki.next,
            sha256=self._pki.ca_sha256,
            devices=len(rows),
            behind=tuple(behind),
        )

    def rotate(self, *, force: bool = False) -> Standing:
        """Announce the next authority; or, once every device knows it, let it issue.

        Raises:
            UsageError: devices are behind (reason `devices_behind`), unless FORCE.
        """
        if self._pki.next is None:
            if len(self._pki.authorities) > 1:
                raise UsageError(
                    "an old authority is still trusted",
                    fix="edgepack fleet ca retire",
                    reason="wrong_state",
                )
            self._pki.announce_next()
        else:
            self._check(force)
            self._pki.switch()
            self._renewed()
        self._hint()
        return self.standing()

    def retire(self, *, force: bool = False) -> Standing:
        """Believe the old authority no more, once every device has a certificate of the new one.

        Raises:
            UsageError: there is none, or devices are behind (reason `devices_behind`).
        """
        if self._pki.next is not None or len(self._pki.authorities) == 1:
            raise UsageError(
                "there is no old authority to retire",
                fix="edgepack fleet ca status",
                reason="wrong_state",
            )
        self._check(force)
        self._pki.retire_old()
        self._hint()
        return self.standing()

    def _check(self, force: bool) -> None:
        behind = self.standing().behind
        if behind and not force:
            raise UsageError(
                f"{len(behind)} devices have not followed yet",
                why=f"they would have to enrol anew: {', '.join(behind[:5])}",
                fix="wait, revoke those that will not come back, or give --force",
                reason="devices_behind",
            )

    def _hint(self) -> None:
        hint, now = messages.encode(self._renewals.hint), self._clock()
        with self._database.write() as session:
            query = select(DeviceRow.id).where(DeviceRow.revoked.is_(None))
            session.add_all(
                OutboxRow(topic=topics.down(device, "cert/notify"), payload=hint, created=now)
                for device in session.scalars(query)
            )
