"""Driver of settings: keeps what is set, lets the director say it, learns what became of it.

What a device is to be set to follows from its group's document and its own. A look compares
that with what the director has said; so a device that joins a group later, or a kill between two
steps, needs no care: the next look does the rest. The director's word comes before our own.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack.errors import EdgepackError, UsageError
from edgepack.messages import Count, Event, Text
from edgepack.settings import Settings, check_settings
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.request_tables import DeviceSettingsRow, SettingsRow
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.asking import hint
from edgepack_fleet.core import settings as core
from edgepack_fleet.membership import everybody, inside

__all__ = ["Scope", "SettingsOf", "Steering", "learn", "version_for"]

log = logging.getLogger(__name__)
Scope = Literal["group", "device"]
LOOK_S = 30.0
"""Seconds between two looks, if nothing was set."""
AT_ONCE = 500
"""Devices that one look signs for: the loop has other work."""
_KINDS: dict[str, type[GroupRow] | type[DeviceRow]] = {"group": GroupRow, "device": DeviceRow}


@dataclass(frozen=True, slots=True)
class SettingsOf:
    """What is set on a group or a device, and where the devices concerned stand."""

    scope: Scope
    name: str
    values: dict[str, Any]
    devices: tuple[DeviceSettingsRow, ...]


class Steering:
    """What devices are set to.

    Args:
        database: Where it is kept.
        say: Lets the director say what a device is to be set to.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        say: Callable[[str, Settings], None],
        clock: Callable[[], float],
    ) -> None:
        self._database, self._say, self._clock = database, say, clock
        self._look_at = 0.0

    def change(
        self,
        scope: Scope,
        name: str,
        more: Mapping[str, Any],
        less: tuple[str, ...] = (),
        by: str = "",
    ) -> SettingsOf:
        """Set MORE on what is called NAME, and unset the keys LESS.

        Raises:
            UsageError: there is none of that name, or a value cannot be set (`bad_settings`).
        """
        with self._database.write() as session:
            _check_known(session, scope, name)
            row = session.get(SettingsRow, (scope, name))
            values = core.changed(row.document if row else {}, more, less)
            check_settings(values)
            if row is None:
                row = SettingsRow(scope=scope, name=name)
                session.add(row)
            row.document, row.by, row.updated = values, by, self._clock()
        self._look_at = 0.0
        return self.of(scope, name)

    def of(self, scope: Scope, name: str) -> SettingsOf:
        """Return what is set on what is called NAME.

        Raises:
            UsageError: there is none of that name (`unknown_group`, `unknown_device`).
        """
        query = select(DeviceSettingsRow).order_by(DeviceSettingsRow.device_id)
        with self._database.read() as session:
            _check_known(session, scope, name)
            row = session.get(SettingsRow, (scope, name))
            if scope == "device":
                query = query.where(DeviceSettingsRow.device_id == name)
            else:
                query = query.join(DeviceRow, DeviceRow.id == DeviceSettingsRow.device_id)
                query = query.where(inside(session, name))
            devices = tuple(session.scalars(query))
        return SettingsOf(scope, name, dict(row.document) if row else {}, devices)

    def tick(self, now: float) -> None:
        """Let the director say what it does not say yet."""
        if now < self._look_at:
            return
        with self._database.read() as session:
            due = _due(session)
        for device, values, version in due[:AT_ONCE]:
            try:
                self._set(device, values, core.next_version(version, now), now)
            except EdgepackError:  # of one device; the others must not wait for it
                log.exception("the settings of %s could not be signed", device)
        if len(due) <= AT_ONCE:
            self._look_at = now + LOOK_S

    def _set(self, device: str, values: dict[str, Any], version: int, now: float) -> None:
        self._say(device, Settings(version=version, values=values))
        with self._database.write() as session:
            row = session.get(DeviceSettingsRow, device)
            if row is None:
                row = DeviceSettingsRow(device_id=device, pinned=[])
                session.add(row)
            row.wanted, row.version, row.changed = values, version, now
            session.add(hint(device, now))


def version_for(session: Session, device: str) -> int:
    """Return the version of the settings that the director says DEVICE shall have; 0: none."""
    row = session.get(DeviceSettingsRow, device)
    return row.version if row else 0


class _Report(msgspec.Struct):
    """What a device says of settings, in the detail of its event."""

    version: Count
    status: Literal["applied", "rejected"]
    message: Text = ""
    pinned: tuple[str, ...] = ()


def learn(session: Session, device: str, event: Event, now: float) -> None:
    """Note what DEVICE says of its settings in EVENT; what cannot be read says nothing."""
    row = session.get(DeviceSettingsRow, device)
    try:
        found = msgspec.convert(event.detail, _Report)
    except msgspec.ValidationError:
        return
    if row is None or found.version < row.reported:
        return
    row.reported, row.status, row.told = found.version, found.status, now
    row.reason, row.message, row.pinned = event.reason, found.message, list(found.pinned)


def _due(session: Session) -> list[tuple[str, dict[str, Any], int]]:
    """Return the devices of which the director says something else, with values and version."""
    rows = session.scalars(select(SettingsRow))
    documents = {(row.scope, row.name): row.document for row in rows}
    said = {row.device_id: row for row in session.scalars(select(DeviceSettingsRow))}
    if not documents and not said:
        return []
    named = {name for scope, name in documents if scope == "group"}
    every, groups = everybody(session, named, DeviceRow.group_id, DeviceRow.revoked)
    found = []
    for device in every:
        if device.revoked is not None:
            continue
        # The group it enrolled into goes before the others it is in.
        within = sorted(groups[device.id], key=lambda group: (group == device.group_id, group))
        of_groups = [documents["group", group] for group in within]
        values = core.wanted(*of_groups, documents.get(("device", device.id), {}))
        row = said.get(device.id)
        if values != (row.wanted if row else {}):
            found.append((device.id, values, row.version if row else 0))
    return found


def _check_known(session: Session, scope: Scope, name: str) -> None:
    if session.get(_KINDS[scope], name) is None:
        fix = f"edgepack fleet {scope}s list"
        raise UsageError(f"no {scope} {name!r}", fix=fix, reason=f"unknown_{scope}")
