"""What lists can be asked for: filters, order, pages. Beside `schemas`, the HTTP contract."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AccessQuery",
    "ApplicantQuery",
    "AuditQuery",
    "DeliveryQuery",
    "DeviceQuery",
    "EventQuery",
    "ExpectedQuery",
    "GroupQuery",
    "ListQuery",
    "ReleaseQuery",
    "RequestQuery",
    "RolloutQuery",
    "StreamQuery",
    "TimelineQuery",
    "TokenQuery",
    "WebhookQuery",
]

from edgepack_fleet.access import Role
from edgepack_fleet.core.filters import LONGEST

Name = Annotated[str, Field(max_length=200)]
Moment = Annotated[float, Field(ge=0, le=1e12, description="Unix seconds")]


class ListQuery(BaseModel):
    """Base: a misspelt filter is refused instead of passing unseen."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1000, description="Items of a page at most")
    cursor: str | None = Field(
        None, max_length=2000, description="`next` of the page before; keep filters and `sort`"
    )
    sort: str = "id"


class DeviceQuery(ListQuery):
    """Which devices."""

    sort: Literal["id", "-id", "seen", "-seen", "enrolled", "-enrolled"] = "id"
    group: Name | None = None
    online: bool | None = None
    release: Name | None = Field(None, description="`name@version` it reports")
    attention: bool | None = Field(None, description="Whether its newest update has failed")
    revoked: bool | None = None
    filter: str | None = Field(
        None, max_length=LONGEST, description="e.g. `tag.site=berlin and inventory.ram_mb>=2048`"
    )
    host: Name | None = Field(None, description="`host` of the inventory: agents of one box")


class RolloutQuery(ListQuery):
    """Which rollouts."""

    sort: Literal["created", "-created", "updated", "-updated"] = "-created"
    state: Name | None = None
    group: Name | None = None
    release: Name | None = Field(None, description="`name@version`")


class RequestQuery(ListQuery):
    """Which requests of a device."""

    sort: Literal["created", "-created"] = "-created"
    kind: Literal["doctor", "logs", "measure"] | None = None


class EventQuery(ListQuery):
    """Which events."""

    sort: Literal["received", "-received"] = "-received"
    device: Name | None = None
    type: Name | None = None
    since: Moment | None = None
    until: Moment | None = None


class GroupQuery(ListQuery):
    """Which groups."""

    sort: Literal["id", "-id"] = "id"


class ApplicantQuery(ListQuery):
    """Which applicants."""

    sort: Literal["created", "-created"] = "-created"
    state: Literal["pending", "accepted", "rejected", "expired", "enrolled"] | None = None
    group: Name | None = None


class ExpectedQuery(ListQuery):
    """Which devices that are known beforehand."""

    sort: Literal["created", "-created"] = "created"
    group: Name | None = None
    used: bool | None = Field(None, description="Whether the device has come")


class TimelineQuery(ListQuery):
    """Which entries of a timeline."""

    sort: Literal["time", "-time"] = "-time"
    kind: Literal["connection", "event", "job", "audit"] | None = None


class TokenQuery(ListQuery):
    """Which tokens."""

    sort: Literal["created", "-created"] = "-created"
    group: Name | None = None


class ReleaseQuery(ListQuery):
    """Which releases."""

    sort: Literal["published", "-published"] = "published"
    name: Name | None = None


class AccessQuery(ListQuery):
    """Which access tokens."""

    sort: Literal["created", "-created"] = "-created"
    role: Role | None = None
    name: Name | None = None


class AuditQuery(ListQuery):
    """Which entries of the audit log."""

    sort: Literal["time", "-time"] = "-time"
    who: Name | None = Field(None, description="Id of an access token")
    action: Name | None = None
    refused: bool | None = None
    since: Moment | None = None
    until: Moment | None = None


class StreamQuery(BaseModel):
    """Which changes."""

    model_config = ConfigDict(extra="forbid")

    type: list[Name] = Field([], max_length=20, description="Only these types; none: all")


class WebhookQuery(ListQuery):
    """Which webhooks."""

    sort: Literal["created", "-created"] = "-created"


class DeliveryQuery(ListQuery):
    """Which messages of a webhook."""

    sort: Literal["created", "-created"] = "-created"
    state: Literal["pending", "delivered", "dead"] | None = None
