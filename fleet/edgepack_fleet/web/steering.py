"""The REST interface to what devices are set to. Routes only."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request

from edgepack_fleet.adapters.request_tables import DeviceSettingsRow
from edgepack_fleet.service import Service
from edgepack_fleet.steering import Scope, SettingsOf
from edgepack_fleet.web import steering_schemas as schemas
from edgepack_fleet.web.guard import PREFIX, Operator, Viewer, caller_of, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=f"{PREFIX}/settings")


@router.get("/{scope}/{name}", dependencies=[Viewer])
def show_settings(fleet: Fleet, scope: Scope, name: str) -> schemas.SettingsOf:
    """Show what is set on a group or a device, and what the devices say to it."""
    return _facts(fleet.steering.of(scope, name))


@router.post("/{scope}/{name}", dependencies=[Operator])
def change_settings(
    request: Request, fleet: Fleet, scope: Scope, name: str, new: schemas.ChangedSettings
) -> schemas.SettingsOf:
    """Set and unset keys on a group or a device; the director signs it, devices follow."""
    caller = caller_of(request.scope)
    by = caller.id if caller else ""
    found = fleet.steering.change(scope, name, new.set, tuple(new.unset), by)
    fleet.poke()
    return _facts(found)


def _facts(found: SettingsOf) -> schemas.SettingsOf:
    return schemas.SettingsOf(
        scope=found.scope,
        name=found.name,
        values=found.values,
        devices=[_device(row) for row in found.devices],
    )


def _device(row: DeviceSettingsRow) -> schemas.DeviceSettings:
    return schemas.DeviceSettings(
        device=row.device_id,
        wanted=row.wanted,
        version=row.version,
        reported=row.reported,
        status=cast("Any", row.status),
        reason=row.reason,
        message=row.message,
        pinned=row.pinned,
        told=row.told or None,
    )
