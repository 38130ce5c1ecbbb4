"""The REST interface to how devices are arranged: groups, tags, names. Routes only."""

from typing import Annotated

from fastapi import APIRouter, Depends

from edgepack_fleet.organising import Description
from edgepack_fleet.service import Service
from edgepack_fleet.web import organise_schemas as schemas
from edgepack_fleet.web import schemas as known
from edgepack_fleet.web import views
from edgepack_fleet.web.guard import PREFIX, Operator, Who, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Operator])


@router.post("/devices/{device}/describe")
def describe_device(fleet: Fleet, device: str, new: schemas.Description) -> known.Device:
    """Change name, notes, tags or group of a device."""
    fleet.roster.organiser.describe(device, Description(**new.model_dump()))
    fleet.poke()
    return _device(fleet, device)


@router.post("/devices/{device}/decommission")
def decommission_device(
    fleet: Fleet, device: str, how: schemas.Farewell, who: Who
) -> schemas.Decommissioned:
    """Take a device out of service: it is shut out for good, and its name is free again."""
    done = fleet.roster.decommissioning.decommission(device, purge=how.purge, by=who)
    fleet.poke()
    return schemas.Decommissioned(device=done.device, kept_as=done.kept_as)


@router.post("/groups/{group}/filter")
def change_filter(fleet: Fleet, group: str, new: schemas.NewFilter) -> known.Group:
    """Give a group that is a filter another one."""
    fleet.roster.organiser.refilter(group, new.filter)
    fleet.poke()
    return _group(fleet, group)


@router.post("/groups/{group}/add")
def add_devices(fleet: Fleet, group: str, which: schemas.NamedDevices) -> known.Group:
    """Put devices into a group, all or none."""
    fleet.roster.organiser.add(group, which.devices)
    fleet.poke()
    return _group(fleet, group)


@router.post("/groups/{group}/remove")
def remove_devices(fleet: Fleet, group: str, which: schemas.NamedDevices) -> known.Group:
    """Take devices out of a group, all or none; they keep what they run."""
    fleet.roster.organiser.remove(group, which.devices)
    fleet.poke()
    return _group(fleet, group)


@router.delete("/groups/{group}", status_code=204)
def delete_group(fleet: Fleet, group: str) -> None:
    """Delete a group that no device, token or rollout needs."""
    fleet.roster.organiser.delete_group(group)


def _device(fleet: Service, device: str) -> known.Device:
    with fleet.database.read() as db:
        return views.known_device(db, device)


def _group(fleet: Service, group: str) -> known.Group:
    with fleet.database.read() as db:
        return views.known_group(db, group)
