"""The REST interface to measurements of releases. Routes only."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from edgepack.errors import UsageError
from edgepack_fleet.service import Service
from edgepack_fleet.web import benchmark_schemas as schemas
from edgepack_fleet.web.asking_schemas import request_facts
from edgepack_fleet.web.guard import PREFIX, Operator, Viewer, caller_of, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=f"{PREFIX}/releases")


@router.get("/{release}/measurements", dependencies=[Viewer])
def list_measurements(fleet: Fleet, release: str) -> schemas.Measurements:
    """List what devices have measured of a release, newest first, five of each at most."""
    found = [
        schemas.Measurement(
            device=row.device_id,
            release=row.release,
            target=row.target,
            received=row.received,
            verified=row.verified,
            document=row.document,
        )
        for row in fleet.benchmarks.of(release)
    ]
    return schemas.Measurements(release=release, measurements=found)


@router.post("/{release}/measurements", status_code=201, dependencies=[Operator])
def measure_release(
    request: Request, fleet: Fleet, release: str, new: schemas.NewMeasuring
) -> schemas.MeasuringAsked:
    """Let a few devices of every class, or one device, measure a release; none installs it."""
    if (new.group is None) == (new.device is None):
        raise UsageError("name a group or a device", reason="bad_request")
    caller = caller_of(request.scope)
    asked = fleet.benchmarks.ask(
        release,
        group=new.group,
        device=new.device,
        each=new.each,
        within_s=new.within_s,
        by=caller.id if caller else "",
    )
    fleet.poke()
    return schemas.MeasuringAsked(
        release=release,
        requests=[request_facts(row) for row in asked.requests],
        left_out=[schemas.LeftOut(device=d, reason=why) for d, why in asked.left_out],
    )
