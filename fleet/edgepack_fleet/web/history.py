"""The REST interface to what happened to a device. Routes only."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query

from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core import cursors
from edgepack_fleet.core.timeline import Key
from edgepack_fleet.membership import unknown_device
from edgepack_fleet.service import Service
from edgepack_fleet.timeline import KEY_KINDS, timeline_of
from edgepack_fleet.web import organise_schemas as schemas
from edgepack_fleet.web import queries
from edgepack_fleet.web.guard import PREFIX, Viewer, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Viewer])


@router.get("/devices/{device}/timeline")
def show_timeline(
    fleet: Fleet, device: str, asked: Annotated[queries.TimelineQuery, Query()]
) -> schemas.Timeline:
    """Tell what happened to a device: jobs, events, connections, what people did."""
    after: Key | None = None
    if asked.cursor is not None:
        after = cast("Key", cursors.unpack(asked.cursor, asked.sort, KEY_KINDS))
    with fleet.database.read() as db:
        row = db.get(DeviceRow, device)
        if row is None:
            raise unknown_device(device)
        found = timeline_of(
            db,
            row,
            after,
            asked.limit + 1,
            kinds=[asked.kind] if asked.kind else [],
            down=asked.sort == "-time",
        )
    page = found[: asked.limit]
    more = len(found) > len(page)
    return schemas.Timeline(
        items=[
            schemas.Happening(time=e.time, kind=e.kind, sentence=e.sentence, facts=dict(e.facts))
            for e in page
        ],
        next=cursors.pack(asked.sort, page[-1].key) if more else None,
    )
