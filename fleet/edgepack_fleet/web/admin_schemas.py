"""The HTTP contract of administration: access tokens, audit log, webhooks. Beside `schemas`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from edgepack_fleet.access import Role
from edgepack_fleet.web.schemas import Model, Page

__all__ = [
    "AccessToken",
    "AccessTokenCreated",
    "AccessTokens",
    "AuditEntries",
    "AuditEntry",
    "Deliveries",
    "Delivery",
    "DeliveryState",
    "NewAccessToken",
    "NewWebhook",
    "Webhook",
    "WebhookCreated",
    "Webhooks",
]

DeliveryState = Literal["pending", "delivered", "dead"]
Label = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]


class NewAccessToken(Model):
    """An access token to create."""

    name: Label = Field(description="What it is for: a person, a program")
    role: Role
    ttl_s: float | None = Field(
        90 * 86400.0, ge=1, le=3650 * 86400, description="Seconds it is good; null: for ever"
    )


class AccessToken(Model):
    """An access token without its secret."""

    id: str
    name: str = Field(description="`bootstrap`: it follows from the fleet's secret")
    role: Role
    created: float = Field(description="Unix seconds")
    expires: float | None = Field(description="Unix seconds; null: never")
    last_used: float | None = Field(description="Unix seconds, to the minute; null: never")


class AccessTokenCreated(AccessToken):
    """A new access token; it is shown this once."""

    token: str


class AccessTokens(Page[AccessToken]):
    """A page of access tokens."""


class AuditEntry(Model):
    """Something that somebody changed, or tried to."""

    id: int
    time: float = Field(description="Unix seconds")
    who: str = Field(description="Id of the access token")
    name: str = Field(description="Name of the token at that time")
    role: Role
    address: str = Field(description="Where it was asked from")
    action: str = Field(description="`operationId` without its path, e.g. `create_group`")
    path: str
    status: int = Field(description="HTTP status; below 400: it is done")
    reason: str = Field(description="Why it was refused; empty: it was not")
    detail: dict[str, Any] = Field(description="What it was about; never a secret")


class AuditEntries(Page[AuditEntry]):
    """A page of the audit log."""


class NewWebhook(Model):
    """A webhook to register."""

    url: str = Field(
        max_length=2000, description="https, or http to this machine; no user, no fragment"
    )
    types: list[Annotated[str, Field(max_length=64)]] = Field(
        [], max_length=20, description="Types of changes; none: all"
    )


class Webhook(Model):
    """A URL that changes are posted to."""

    id: str
    url: str
    types: list[str]
    state: Literal["active", "gone"] = Field(description="`gone`: it answered 410")
    by: str = Field(description="Id of the access token that registered it")
    created: float = Field(description="Unix seconds")
    last_answer: str = Field(description="HTTP status, or why there was none; empty: none yet")
    last_time: float | None = Field(description="Unix seconds")


class WebhookCreated(Webhook):
    """A new webhook."""

    secret: str = Field(description="Key of its signatures; shown this once")


class Webhooks(Page[Webhook]):
    """A page of webhooks."""


class Delivery(Model):
    """A message of a webhook."""

    id: int
    event: str = Field(description="Id of the CloudEvent")
    type: str
    state: DeliveryState
    tries: int
    answer: str = Field(description="The last: HTTP status, or why there was none")
    created: float = Field(description="Unix seconds")
    due: float | None = Field(description="Unix seconds of the next try; null: there is none")


class Deliveries(Page[Delivery]):
    """A page of messages."""
