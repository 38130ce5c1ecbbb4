"""How people arrange devices: groups, tags, names. Every change is one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from edgepack.errors import UsageError
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.device_tables import ApplicantRow, ExpectedRow, GroupMember
from edgepack_fleet.adapters.request_tables import SettingsRow
from edgepack_fleet.adapters.tables import DeviceRow, EnrolToken, GroupRow, RolloutRow
from edgepack_fleet.core import tags
from edgepack_fleet.core.filters import parse_filter
from edgepack_fleet.membership import known_group, static_group, unknown_device

__all__ = ["Description", "Organiser"]


@dataclass(frozen=True, slots=True)
class Description:
    """What shall be changed about a device; None: it stays."""

    name: str | None = None
    notes: str | None = None
    group: str | None = None
    """The group that takes the place of the one it enrolled into."""
    tags: Mapping[str, str | None] | None = None
    """Values by key; None takes a tag away."""


class Organiser:
    """Makes groups and says what devices are.

    Args:
        database: Where it is kept.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def create_group(self, group: str, text: str = "") -> None:
        """Make a GROUP: of the devices that fit the filter in TEXT; empty: of those put into it.

        Raises:
            UsageError: there is one of that name (`exists`), or the filter cannot be read.
        """
        if text:
            parse_filter(text)
        with self._database.write() as session:
            if session.get(GroupRow, group) is not None:
                raise UsageError(f"there is a group {group!r} already", reason="exists")
            session.add(GroupRow(id=group, created=self._clock(), filter=text.strip()))

    def refilter(self, group: str, text: str) -> None:
        """Give a GROUP that is a filter another one.

        Raises:
            UsageError: no such group, it is no filter, or the new one cannot be read.
        """
        parse_filter(text)
        with self._database.write() as session:
            row = known_group(session, group)
            if not row.filter:
                raise UsageError(
                    f"group {group} is a list of devices",
                    why="its devices enrolled into it or were added",
                    fix=f"edgepack fleet groups create NAME --filter {text!r}",
                    reason="not_a_filter",
                )
            row.filter = text.strip()

    def delete_group(self, group: str) -> None:
        """Delete a GROUP that nothing needs; devices that were added to it only leave it.

        Raises:
            UsageError: no such group, or devices, tokens or rollouts need it (`group_in_use`).
        """
        with self._database.write() as session:
            row = known_group(session, group)
            for kind, said in _NEEDS.items():
                if count := session.scalar(select(func.count()).where(kind.group_id == group)):
                    raise UsageError(
                        f"group {group} is needed",
                        why=f"{count} {said}",
                        fix="groups that had a rollout stay, so that it can be looked up",
                        reason="group_in_use",
                    )
            session.execute(delete(GroupMember).where(GroupMember.group_id == group))
            settings = SettingsRow.scope == "group", SettingsRow.name == group
            session.execute(delete(SettingsRow).where(*settings))
            session.delete(row)

    def add(self, group: str, devices: Sequence[str]) -> None:
        """Put DEVICES into GROUP, all or none; whoever is in it stays.

        Raises:
            UsageError: no such group or device, or the group is a filter.
        """
        with self._database.write() as session:
            static_group(session, group)
            for device in dict.fromkeys(devices):
                row = _device(session, device)
                if row.group_id != group:
                    session.merge(GroupMember(group_id=group, device_id=device))

    def remove(self, group: str, devices: Sequence[str]) -> None:
        """Take DEVICES out of GROUP, all or none.

        Raises:
            UsageError: no such group or device, the group is a filter, or a device is at home in
                it (`home_group`).
        """
        with self._database.write() as session:
            static_group(session, group)
            for device in dict.fromkeys(devices):
                if _device(session, device).group_id == group:
                    raise UsageError(
                        f"{device} cannot leave {group}",
                        why="it enrolled into it, and a device is in one group at least",
                        fix=f"edgepack fleet devices set {device} --group OTHER",
                        reason="home_group",
                    )
                _take_out(session, group, device)

    def describe(self, device: str, new: Description) -> None:
        """Change what people say about a DEVICE.

        Raises:
            UsageError: no such device or group, or a tag that cannot be kept.
        """
        with self._database.write() as session:
            row = _device(session, device)
            row.name = row.name if new.name is None else new.name
            row.notes = row.notes if new.notes is None else new.notes
            if new.tags is not None:
                row.tags = tags.changed(row.tags, new.tags)
            if new.group is not None:
                static_group(session, new.group)
                row.group_id = new.group
                # At home there now; it shall not stay behind when the device moves on.
                _take_out(session, new.group, device)


_NEEDS: dict[type[DeviceRow | EnrolToken | RolloutRow | ApplicantRow | ExpectedRow], str] = {
    DeviceRow: "device(s) enrolled into it",
    EnrolToken: "enrolment token(s) lead into it",
    RolloutRow: "rollout(s) went to it",
    ApplicantRow: "device(s) asked to join it",
    ExpectedRow: "device(s) are expected in it",
}


def _take_out(session: Session, group: str, device: str) -> None:
    mine = GroupMember.group_id == group, GroupMember.device_id == device
    session.execute(delete(GroupMember).where(*mine))


def _device(session: Session, device: str) -> DeviceRow:
    row = session.get(DeviceRow, device)
    if row is None:
        raise unknown_device(device)
    return row
