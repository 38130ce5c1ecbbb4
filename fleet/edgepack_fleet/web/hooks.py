"""The REST interface to webhooks, for administrators. Routes only."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request

from edgepack_fleet.adapters.tables import DeliveryRow, WebhookRow
from edgepack_fleet.service import Service
from edgepack_fleet.web import admin_schemas as schemas
from edgepack_fleet.web import paging, queries
from edgepack_fleet.web.guard import PREFIX, Admin, caller_of, service_of

__all__ = ["router"]

HOOKS: paging.Order = {"created": (WebhookRow.created, WebhookRow.id)}
DELIVERIES: paging.Order = {"created": (DeliveryRow.id,)}

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=f"{PREFIX}/webhooks", dependencies=[Admin])


@router.get("")
def list_webhooks(
    fleet: Fleet, asked: Annotated[queries.WebhookQuery, Query()]
) -> schemas.Webhooks:
    """List webhooks, newest first, each with the last answer it gave."""
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, WebhookRow, [], HOOKS, asked)
    return schemas.Webhooks(items=[schemas.Webhook(**_facts(row)) for row in rows], next=after)


@router.post("", status_code=201)
def create_webhook(
    request: Request, fleet: Fleet, new: schemas.NewWebhook
) -> schemas.WebhookCreated:
    """Register a URL that changes are posted to; the key of its signatures is shown this once."""
    caller = caller_of(request.scope)
    row, secret = fleet.webhooks.create(new.url, new.types, caller.id if caller else "")
    return schemas.WebhookCreated(**_facts(row), secret=secret)


@router.get("/{webhook}")
def show_webhook(fleet: Fleet, webhook: str) -> schemas.Webhook:
    """Show one webhook."""
    return schemas.Webhook(**_facts(fleet.webhooks.get(webhook)))


@router.delete("/{webhook}", status_code=204)
def delete_webhook(fleet: Fleet, webhook: str) -> None:
    """Post nothing there any more; what waits is dropped."""
    fleet.webhooks.delete(webhook)


@router.post("/{webhook}/test", status_code=202)
def test_webhook(fleet: Fleet, webhook: str) -> schemas.Webhook:
    """Post a message of type `edgepack.webhook.test`; a webhook that was gone is active again."""
    fleet.webhooks.test(webhook)
    return show_webhook(fleet, webhook)


@router.get("/{webhook}/deliveries")
def list_deliveries(
    fleet: Fleet, webhook: str, asked: Annotated[queries.DeliveryQuery, Query()]
) -> schemas.Deliveries:
    """List what was, or is to be, posted to one webhook, newest first."""
    fleet.webhooks.get(webhook)
    filters = [
        (True, DeliveryRow.webhook_id == webhook),
        (asked.state is not None, DeliveryRow.state == asked.state),
    ]
    with fleet.database.read() as db:
        rows, after = paging.of_rows(db, DeliveryRow, filters, DELIVERIES, asked)
    return schemas.Deliveries(items=[_delivery(row) for row in rows], next=after)


def _facts(row: WebhookRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "types": row.types,
        "state": row.state,
        "by": row.by,
        "created": row.created,
        "last_answer": row.answer,
        "last_time": row.answered,
    }


def _delivery(row: DeliveryRow) -> schemas.Delivery:
    return schemas.Delivery(
        id=row.id,
        event=str(row.event["id"]),
        type=str(row.event["type"]),
        state=cast("schemas.DeliveryState", row.state),
        tries=row.tries,
        answer=row.answer,
        created=row.created,
        due=row.due if row.state == "pending" else None,
    )
