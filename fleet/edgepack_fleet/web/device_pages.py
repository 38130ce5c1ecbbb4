"""The pages of devices: the table, one device, and what may be done with them."""

import csv
import io
import time
from dataclasses import asdict
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Form, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from edgepack.errors import UsageError
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.admission import waiting
from edgepack_fleet.audit import Deed
from edgepack_fleet.organising import Description
from edgepack_fleet.service import Service
from edgepack_fleet.web import (
    device_charts,
    device_story,
    device_table,
    schemas,
    views,
)
from edgepack_fleet.web.browser import Operator, Viewer, may
from edgepack_fleet.web.guard import service_of
from edgepack_fleet.web.rendering import PageError, page

__all__ = ["router"]

MOST = 250
"""Devices that one form may name."""
COLUMNS = ("id", "group", "online", "desired", "bundle", "target", "agent", "inferences", "errors")

Fleet = Annotated[Service, Depends(service_of)]
Ids = Annotated[list[Annotated[str, Query(max_length=128)]], Query(alias="id", max_length=MOST)]
router = APIRouter(include_in_schema=False)


@router.get("/devices")
def devices(
    request: Request, fleet: Fleet, role: Viewer, asked: Annotated[device_table.Asked, Query()]
) -> Response:
    """Show the devices that pass the filters, a page at a time."""
    with fleet.database.read() as db:
        table = device_table.read(db, asked)
        groups, releases = device_table.choices(db)
        applicants = waiting(db, fleet.now())
    kept = {k: v for k, v in asked.model_dump(mode="json", exclude_defaults=True).items() if v}

    def link(**changes: object) -> str:
        facts = {"page": None} | kept | changes
        return "/devices?" + urlencode({k: v for k, v in facts.items() if v not in {None, ""}})

    return page(
        request, "devices", role=role, may=may(role), asked=asked, table=table, groups=groups,
        releases=releases, applicants=applicants, link=link, export=urlencode(kept),
    )  # fmt: skip


@router.get("/devices.csv")
def devices_csv(
    fleet: Fleet, _role: Viewer, asked: Annotated[device_table.Asked, Query()]
) -> Response:
    """Return the devices that pass the filters as a table for other programs."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*COLUMNS, "last_seen", "update", "reason"])
    with fleet.database.read() as db:
        for device in device_table.every(db, asked):
            job = (device.job.status, device.job.reason) if device.job else ("", "")
            facts = [getattr(device, name) for name in COLUMNS]
            rows.writerow([_plain(cell) for cell in (*facts, device.last_seen, *job)])
    headers = {"Content-Disposition": 'attachment; filename="devices.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


@router.get("/revoke")
def ask_to_revoke(request: Request, fleet: Fleet, role: Operator, ids: Ids) -> Response:
    """Ask whether some devices shall be revoked."""
    with fleet.database.read() as db:
        rows = db.scalars(select(DeviceRow).where(DeviceRow.id.in_(ids)).order_by(DeviceRow.id))
        found = [row.id for row in rows if row.revoked is None]
    if not found:
        raise PageError(404, "None of these devices can be revoked")
    back = f"/devices/{found[0]}" if len(found) == 1 else "/devices"
    return page(request, "confirm_revoke", role=role, devices=found, back=back)


@router.post("/revoke")
def revoke_devices(
    request: Request,
    fleet: Fleet,
    _role: Operator,
    ids: Annotated[list[Annotated[str, Form(max_length=128)]], Form(alias="id", max_length=MOST)],
) -> Response:
    """Revoke devices, for good; the audit log names each of them."""
    caller, address = request.state.caller, request.client.host if request.client else ""
    for device in ids:
        try:
            fleet.revocation.revoke(device, by=caller.known_as)
        except UsageError:
            continue  # it is no more; the others must go
        deed = Deed("revoke_device", f"/devices/{device}/revoke", 200)
        fleet.audit.record(caller, address, deed, {"id": device})
    fleet.poke()
    where = f"/devices/{ids[0]}" if len(ids) == 1 else "/devices?state=revoked"
    return RedirectResponse(where, 303)


@router.get("/devices/{device_id}")
def device(
    request: Request,
    fleet: Fleet,
    role: Viewer,
    device_id: str,
    kind: Annotated[str, Query(max_length=20)] = "",
    after: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """Show one device: what it shall run, what it runs, and what happened on it."""
    with fleet.database.read() as db:
        found = _known(views.device(db, device_id), device_id)
        story = _story(db, device_id, kind, after)
        measured = device_charts.measured(db, device_id, fleet.now())
    return page(
        request,
        "device",
        role=role,
        may=may(role),
        device=found,
        story=story,
        kinds=device_story.KINDS,
        kind=kind,
        newest=not after,
        measured=measured,
        charts=asdict(measured),
        today=time.time(),
    )


@router.post("/devices/{device_id}/tags")
def tag_device(
    fleet: Fleet,
    _role: Operator,
    device_id: str,
    key: Annotated[str, Form(max_length=100)],
    value: Annotated[str, Form(max_length=400)] = "",
) -> Response:
    """Set a tag of a device; without a value it is taken away."""
    new = Description(tags={key.strip(): value.strip() or None})
    try:
        fleet.roster.organiser.describe(device_id, new)
    except UsageError as error:
        raise PageError(400, f"{error}") from error
    fleet.poke()
    return RedirectResponse(f"/devices/{device_id}", 303)


def _story(session: Session, device_id: str, kind: str, after: str) -> device_story.Story:
    try:
        return device_story.story(session, session.get_one(DeviceRow, device_id), kind, after)
    except UsageError as error:
        raise PageError(400, "This page of the time line is not known") from error


def _known(device: schemas.Device | None, device_id: str) -> schemas.Device:
    if device is None:
        raise PageError(404, f"There is no device {device_id}")
    return device


def _plain(value: object) -> object:
    """Return VALUE so that a spreadsheet does not take it for a formula."""
    risky = isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}
    return f"'{value}" if risky else value
