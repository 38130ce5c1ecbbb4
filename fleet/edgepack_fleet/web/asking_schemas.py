"""The HTTP contract of what is asked of devices. Beside `schemas`."""

from typing import Any, Literal, cast

from pydantic import Field

from edgepack.messages import JobStatus
from edgepack.requests import Kind
from edgepack_fleet.adapters.request_tables import RequestRow
from edgepack_fleet.web.schemas import Model, Page

__all__ = ["DeviceRequest", "DeviceRequests", "NewRequest", "request_facts"]


class NewRequest(Model):
    """Something to ask of a device."""

    kind: Literal["doctor", "logs"]
    lines: int | None = Field(None, ge=1, le=1000, description="Of `logs`: at most this many")
    within_s: float = Field(
        600.0, ge=1, le=7 * 86400, description="Seconds until nobody waits for the answer any more"
    )


class DeviceRequest(Model):
    """Something asked of a device, and the answer."""

    id: str
    device: str
    kind: Literal["doctor", "logs", "measure"]
    args: dict[str, Any]
    status: JobStatus
    reason: str = Field(description="Why there is no answer")
    message: str
    result: dict[str, Any] = Field(description="The answer; empty while there is none")
    verified: bool = Field(description="Whether the device has signed the answer")
    created: float = Field(description="Unix seconds")
    updated: float = Field(description="Unix seconds")
    deadline: float = Field(description="Unix seconds")
    took_s: float = Field(description="Seconds that the device took for it")


class DeviceRequests(Page[DeviceRequest]):
    """A page of requests."""


def request_facts(row: RequestRow) -> DeviceRequest:
    """Return ROW as it is told."""
    return DeviceRequest(
        id=row.id,
        device=row.device_id,
        kind=cast("Kind", row.kind),
        args=row.args,
        status=cast("JobStatus", row.status),
        reason=row.reason,
        message=row.message,
        result=row.result,
        verified=row.verified,
        created=row.created,
        updated=row.updated,
        deadline=row.deadline,
        took_s=row.took_s,
    )
