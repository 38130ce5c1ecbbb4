"""`/metrics` for Prometheus: to this machine, or to whoever has a token. Routes only."""

import ipaddress
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edgepack_fleet.scraping import Standing, exposition
from edgepack_fleet.service import Service
from edgepack_fleet.web.guard import given_token, service_of

__all__ = ["router"]

Fleet = Annotated[Service, Depends(service_of)]
PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip")
router = APIRouter(include_in_schema=False)


@router.get("/metrics")
def metrics(request: Request, fleet: Fleet) -> Response:
    """Return the metrics of the fleet, without a token only to this machine itself."""
    token = given_token(request.scope)
    if not (fleet.access.caller(token) if token else _is_here(request)):
        raise HTTPException(401, "give a valid token: Authorization: Bearer TOKEN")
    standing = Standing(
        fleet.settings.data,
        fleet.link.connected,
        fleet.uplink.refused + fleet.transfer.refused,
        fleet.uplink.left_out,
    )
    return Response(exposition(fleet.database, standing), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _is_here(request: Request) -> bool:
    """Say whether it was asked on this machine, and by no proxy for somebody else."""
    ours = request.url.hostname in {"localhost", "127.0.0.1", "::1"}
    if request.client is None or not ours or any(name in request.headers for name in PROXIED):
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
