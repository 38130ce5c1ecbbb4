"""The HTTP contract of administration: access tokens, the audit log. Beside `schemas`."""

from typing import Annotated, Any

from pydantic import Field

from edgepack_fleet.access import Role
from edgepack_fleet.web.schemas import Model, Page

__all__ = [
    "AccessToken",
    "AccessTokenCreated",
    "AccessTokens",
    "AuditEntries",
    "AuditEntry",
    "NewAccessToken",
]

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
