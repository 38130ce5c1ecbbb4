"""The lists of the REST interface: which rows, in which order. How a row is shown is in `views`."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import (
    DeviceRow,
    EnrolToken,
    EventRow,
    GroupRow,
    RolloutRow,
)
from edgepack_fleet.core.filters import All, parse_filter
from edgepack_fleet.core.variants import Release
from edgepack_fleet.membership import fitting, put_into
from edgepack_fleet.web import conditions, paging, queries, schemas, views

__all__ = ["devices", "enrol_tokens", "events", "groups", "releases", "rollouts"]

DEVICES: paging.Order = {
    "id": (DeviceRow.id,),
    "seen": (DeviceRow.seen, DeviceRow.id),
    "enrolled": (DeviceRow.enrolled, DeviceRow.id),
}
ROLLOUTS: paging.Order = {
    "created": (RolloutRow.number,),
    "updated": (RolloutRow.updated, RolloutRow.number),
}
EVENTS: paging.Order = {
    "received": (EventRow.received, EventRow.device_id, EventRow.boot, EventRow.seq)
}
GROUPS: paging.Order = {"id": (GroupRow.id,)}
TOKENS: paging.Order = {"created": (EnrolToken.created, EnrolToken.id)}


def devices(session: Session, asked: queries.DeviceQuery) -> schemas.Devices:
    """Return the devices that are ASKED for.

    Raises:
        FilterError: the filter cannot be read.
    """
    group = session.get(GroupRow, asked.group) if asked.group is not None else None
    by_list = asked.group is not None and not (group and group.filter)
    filters = [
        (by_list, put_into(asked.group or "")),
        (asked.release is not None, DeviceRow.bundle == asked.release),
        (asked.online is not None, DeviceRow.online.is_(asked.online)),
        (asked.attention is True, conditions.attention()),
        (asked.attention is False, ~conditions.attention()),
        (asked.host is not None, DeviceRow.inventory["host"].as_string() == asked.host),
        (asked.revoked is True, DeviceRow.revoked.is_not(None)),
        (asked.revoked is False, DeviceRow.revoked.is_(None)),
    ]
    texts = [text for text in (asked.filter, group and group.filter) if text]
    wanted = All(tuple(parse_filter(text) for text in texts))
    keep = partial(fitting, session, wanted) if texts else None
    rows, after = paging.of_rows(session, DeviceRow, filters, DEVICES, asked, keep)
    return schemas.Devices(items=views.devices(session, rows), next=after)


def rollouts(
    session: Session, asked: queries.RolloutQuery
) -> tuple[Sequence[RolloutRow], str | None]:
    """Return the rollouts that are ASKED for, and the cursor to the next ones."""
    filters = [
        (asked.state is not None, RolloutRow.state == asked.state),
        (asked.group is not None, RolloutRow.group_id == asked.group),
        (asked.release is not None, RolloutRow.release == asked.release),
    ]
    return paging.of_rows(session, RolloutRow, filters, ROLLOUTS, asked)


def events(session: Session, asked: queries.EventQuery) -> schemas.Events:
    """Return the events of devices that are ASKED for."""
    filters = [
        (asked.device is not None, EventRow.device_id == asked.device),
        (asked.type is not None, EventRow.type == asked.type),
        (asked.since is not None, EventRow.received >= (asked.since or 0)),
        (asked.until is not None, EventRow.received < (asked.until or 0)),
    ]
    rows, after = paging.of_rows(session, EventRow, filters, EVENTS, asked)
    return schemas.Events(items=[views.event(row) for row in rows], next=after)


def groups(session: Session, asked: queries.GroupQuery) -> schemas.Groups:
    """Return the groups that are ASKED for."""
    rows, after = paging.of_rows(session, GroupRow, [], GROUPS, asked)
    return schemas.Groups(items=views.groups(session, [row.id for row in rows]), next=after)


def enrol_tokens(session: Session, asked: queries.TokenQuery) -> schemas.EnrolTokens:
    """Return the enrolment tokens that are ASKED for."""
    filters = [(asked.group is not None, EnrolToken.group_id == asked.group)]
    rows, after = paging.of_rows(session, EnrolToken, filters, TOKENS, asked)
    return schemas.EnrolTokens(items=[views.enrol_token(row) for row in rows], next=after)


def releases(found: Sequence[Release], asked: queries.ReleaseQuery) -> schemas.Releases:
    """Return those of the releases FOUND that are ASKED for."""
    named = [r for r in found if asked.name is None or r.name == asked.name]
    page, after = paging.of_sequence(named, lambda release: release.id, asked)
    return schemas.Releases(items=[views.release(release) for release in page], next=after)
