"""How a device is taken out of service: shut out for good, and its name free for another one.

What it has told stays under another name that no device can have, or goes, too. The name is free
only once its last session has ended and the broker keeps its certificates out: nobody shall speak
as the device that comes after it.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Table, delete, insert, inspect, update
from sqlalchemy.orm import Session

from edgepack.errors import UnreachableError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.device_tables import GroupMember
from edgepack_fleet.adapters.request_tables import SettingsRow
from edgepack_fleet.adapters.tables import Base, DeviceRow
from edgepack_fleet.membership import unknown_device
from edgepack_fleet.timeline import archived_name

__all__ = ["Decommissioned", "Decommissioning"]


class Revocation(Protocol):
    """What became of a device that was revoked."""

    @property
    def session(self) -> str:
        """`ended` if it is off the broker and cannot come back."""


class Revoker(Protocol):
    """Who shuts devices out."""

    def revoke(self, device: str, by: str = "") -> Revocation:
        """Shut DEVICE out for good, as BY wants."""

    def release(self, device: str) -> None:
        """Let the name of DEVICE, which is no more, be another one's."""


@dataclass(frozen=True, slots=True)
class Decommissioned:
    """A device that is no more."""

    device: str
    kept_as: str | None
    """Where what it has told can be looked up; None: it is gone."""


class Decommissioning:
    """Takes devices out of service.

    Args:
        database: Where they are kept.
        revocation: Shuts them out.
        forget: Lets the director say nothing about a device any more.
    """

    def __init__(
        self, database: Database, revocation: Revoker, forget: Callable[[str], None]
    ) -> None:
        self._database, self._revocation, self._forget = database, revocation, forget

    def decommission(self, device: str, *, purge: bool = False, by: str = "") -> Decommissioned:
        """Revoke DEVICE and free its name; PURGE: all that it has told goes, too. BY is on record.

        Raises:
            UsageError: there is no such device.
            UnreachableError: it is revoked, but its session has not surely ended (reason
                `session_open`); to be done again.
        """
        if archived_name(device) == device:
            outcome = self._revocation.revoke(device, by).session
            if outcome != "ended":
                raise _still_open(device, outcome)
        kept_as = None if purge else f"{archived_name(device)}~{secrets.token_hex(4)}"
        with self._database.write() as session:
            row = session.get(DeviceRow, device)
            if row is None:
                raise unknown_device(device)
            if kept_as is not None and archived_name(device) != device:
                return Decommissioned(device, device)
            if archived_name(device) == device:
                self._forget(device)  # before its name is free; it is shut out already
            session.execute(delete(GroupMember).where(GroupMember.device_id == device))
            _let_go(session, row, kept_as)
        self._revocation.release(device)
        return Decommissioned(device, kept_as)


def _let_go(session: Session, row: DeviceRow, kept_as: str | None) -> None:
    """Keep all rows about a device under another name, or delete them; then its own."""
    device = row.id
    if kept_as is not None:
        # By statements, not as objects: nobody is told that a device enrolled.
        facts = {c.key: getattr(row, c.key) for c in inspect(DeviceRow).column_attrs}
        session.execute(insert(DeviceRow).values(facts | {"id": kept_as, "online": False}))
    for table in _about_devices():
        mine: Any = table.c.device_id == device
        gone = kept_as is None
        session.execute(
            delete(table).where(mine)
            if gone
            else update(table).where(mine).values(device_id=kept_as)
        )
    mine = SettingsRow.scope == "device", SettingsRow.name == device
    session.execute(delete(SettingsRow).where(*mine))
    session.execute(delete(DeviceRow).where(DeviceRow.id == device))


def _about_devices() -> list[Table]:
    """Return every table that has something about devices, whoever added it."""
    return [table for table in Base.metadata.sorted_tables if "device_id" in table.c]


def _still_open(device: str, outcome: str) -> UnreachableError:
    why = "the broker does not answer, so that its session may still be open"
    fix = "start the broker, then decommission it again"
    if outcome == "list_ignored":
        why = "the broker does not read the revocation list, so that it could come back"
        fix = "run the broker with the configuration of `edgepack fleet broker`, then again"
    return UnreachableError(
        f"{device} is revoked, but its name is not free yet",
        why=why,
        fix=fix,
        reason="session_open",
    )
