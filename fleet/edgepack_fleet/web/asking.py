"""The REST interface to what is asked of devices. Routes only."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from edgepack_fleet.adapters.request_tables import RequestRow
from edgepack_fleet.service import Service
from edgepack_fleet.web import asking_schemas as schemas
from edgepack_fleet.web import paging, queries
from edgepack_fleet.web.guard import PREFIX, Operator, caller_of, service_of

__all__ = ["router"]

ORDER: paging.Order = {"created": (RequestRow.created, RequestRow.id)}

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Operator])


@router.post("/devices/{device}/requests", status_code=201)
def ask_device(
    request: Request, fleet: Fleet, device: str, new: schemas.NewRequest
) -> schemas.DeviceRequest:
    """Ask a device for its check-up, or for the end of its log; it answers when it is there."""
    caller = caller_of(request.scope)
    args = {"lines": new.lines} if new.lines and new.kind == "logs" else {}
    row = fleet.requests.create(device, new.kind, args, new.within_s, caller.id if caller else "")
    fleet.poke()
    return schemas.request_facts(row)


@router.get("/devices/{device}/requests")
def list_requests(
    fleet: Fleet, device: str, asked: Annotated[queries.RequestQuery, Query()]
) -> schemas.DeviceRequests:
    """List what was asked of a device, newest first."""
    filters = [
        (True, RequestRow.device_id == device),
        (asked.kind is not None, RequestRow.kind == asked.kind),
    ]
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, RequestRow, filters, ORDER, asked)
    return schemas.DeviceRequests(items=[schemas.request_facts(row) for row in rows], next=after)


@router.get("/requests/{request}")
def show_request(fleet: Fleet, request: str) -> schemas.DeviceRequest:
    """Show one request with its answer."""
    return schemas.request_facts(fleet.requests.get(request))


@router.post("/requests/{request}/cancel")
def cancel_request(fleet: Fleet, request: str) -> schemas.DeviceRequest:
    """Wait for the answer no more; what has ended stays as it is."""
    done = schemas.request_facts(fleet.requests.cancel(request))
    fleet.poke()
    return done
