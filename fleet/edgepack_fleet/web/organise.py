"""The REST interface to how devices are arranged: groups, tags, names. Routes only."""

from typing import Annotated

from fastapi import APIRouter, Depends

from edgepack_fleet.organising import Description
from edgepack_fleet.service import Service
from edgepack_fleet.web import organise_schemas, schemas, views
from edgepack_fleet.web.guard import PREFIX, Operator, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Operator])


@router.post("/devices/{device}/describe")
def describe_device(fleet: Fleet, device: str, new: organise_schemas.Description) -> schemas.Device:
    """Change name, notes, tags or group of a device."""
    fleet.organiser.describe(device, Description(**new.model_dump()))
    fleet.poke()
    return _device(fleet, device)


@router.post("/groups/{group}/filter")
def change_filter(fleet: Fleet, group: str, new: organise_schemas.NewFilter) -> schemas.Group:
    """Give a group that is a filter another one."""
    fleet.organiser.refilter(group, new.filter)
    fleet.poke()
    return _group(fleet, group)


@router.post("/groups/{group}/add")
def add_devices(fleet: Fleet, group: str, which: organise_schemas.NamedDevices) -> schemas.Group:
    """Put devices into a group, all or none."""
    fleet.organiser.add(group, which.devices)
    fleet.poke()
    return _group(fleet, group)


@router.post("/groups/{group}/remove")
def remove_devices(fleet: Fleet, group: str, which: organise_schemas.NamedDevices) -> schemas.Group:
    """Take devices out of a group, all or none; they keep what they run."""
    fleet.organiser.remove(group, which.devices)
    fleet.poke()
    return _group(fleet, group)


@router.delete("/groups/{group}", status_code=204)
def delete_group(fleet: Fleet, group: str) -> None:
    """Delete a group that no device, token or rollout needs."""
    fleet.organiser.delete_group(group)


def _device(fleet: Service, device: str) -> schemas.Device:
    with fleet.database.read() as db:
        return views.known_device(db, device)


def _group(fleet: Service, group: str) -> schemas.Group:
    with fleet.database.read() as db:
        return views.known_group(db, group)
