"""The REST interface of administrators: access tokens and the audit log. Routes only."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query

from edgepack_fleet.access import Role
from edgepack_fleet.adapters.tables import ApiToken, AuditRow
from edgepack_fleet.service import Service
from edgepack_fleet.web import admin_schemas as schemas
from edgepack_fleet.web import paging, queries
from edgepack_fleet.web.guard import PREFIX, Admin, service_of

__all__ = ["router"]

ACCESS: paging.Order = {"created": (ApiToken.created, ApiToken.id)}
AUDIT: paging.Order = {"time": (AuditRow.id,)}

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Admin])


@router.get("/access-tokens")
def list_access_tokens(
    fleet: Fleet, asked: Annotated[queries.AccessQuery, Query()]
) -> schemas.AccessTokens:
    """List access tokens, newest first, without their secrets."""
    filters = [
        (asked.role is not None, ApiToken.role == asked.role),
        (asked.name is not None, ApiToken.name == asked.name),
    ]
    fleet.access.save_used()
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, ApiToken, filters, ACCESS, asked)
    return schemas.AccessTokens(items=[_access_token(row) for row in rows], next=after)


@router.post("/access-tokens", status_code=201)
def create_access_token(fleet: Fleet, new: schemas.NewAccessToken) -> schemas.AccessTokenCreated:
    """Create an access token; it is shown this once."""
    row, token = fleet.access.create(new.name, new.role, new.ttl_s)
    return schemas.AccessTokenCreated(**_access_token(row).model_dump(), token=token)


@router.delete("/access-tokens/{token}", status_code=204)
def revoke_access_token(fleet: Fleet, token: str) -> None:
    """Let an access token in no more, from its next request on; sessions of it end, too."""
    fleet.access.revoke(token)


@router.get("/audit")
def list_audit(fleet: Fleet, asked: Annotated[queries.AuditQuery, Query()]) -> schemas.AuditEntries:
    """List who changed what, newest first."""
    filters = [
        (asked.who is not None, AuditRow.who == asked.who),
        (asked.action is not None, AuditRow.action == asked.action),
        (asked.refused is True, AuditRow.status >= 400),
        (asked.refused is False, AuditRow.status < 400),
        (asked.since is not None, AuditRow.time >= (asked.since or 0)),
        (asked.until is not None, AuditRow.time < (asked.until or 0)),
    ]
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, AuditRow, filters, AUDIT, asked)
    return schemas.AuditEntries(items=[_entry(row) for row in rows], next=after)


def _access_token(row: ApiToken) -> schemas.AccessToken:
    return schemas.AccessToken(
        id=row.id,
        name=row.name,
        role=cast("Role", row.role),
        created=row.created,
        expires=row.expires,
        last_used=row.used,
    )


def _entry(row: AuditRow) -> schemas.AuditEntry:
    return schemas.AuditEntry(
        id=row.id,
        time=row.time,
        who=row.who,
        name=row.name,
        role=cast("Role", row.role),
        address=row.address,
        action=row.action,
        path=row.path,
        status=row.status,
        reason=row.reason,
        detail=row.detail,
    )
