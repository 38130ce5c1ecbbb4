"""Errors over HTTP: problem documents (RFC 9457). Says what our errors say, nothing about code."""

import logging
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack.errors import EdgepackError, UsageError
from edgepack_fleet.enrolment import RefusedError

__all__ = ["install", "problem"]

BY_REASON = {
    "unknown_device": 404,
    "unknown_group": 404,
    "unknown_release": 404,
    "unknown_rollout": 404,
    "wrong_state": 409,
    "superseded": 409,
    "devices_behind": 409,
    "exists": 409,
    "disk_full": 507,
}
TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    409: "Conflict",
    413: "Too large",
    422: "Not acceptable as it is",
    507: "No room",
}

log = logging.getLogger(__name__)


def problem(status: int, detail: str, **facts: Any) -> JSONResponse:
    """Return a problem document; FACTS are added to it."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = {"type": "about:blank", "title": TITLES.get(status, "Error"), "status": status}
    return JSONResponse(
        body | {"detail": detail} | facts,
        status,
        headers=headers,
        media_type="application/problem+json",
    )


def install(app: Starlette) -> None:
    """Let APP answer every error with a problem document."""
    app.add_exception_handler(EdgepackError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def _status(error: EdgepackError) -> int:
    if isinstance(error, RefusedError):
        return 403
    return BY_REASON.get(error.reason, 400 if isinstance(error, UsageError) else 422)


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgepackError)
    facts = error.as_dict()
    return problem(_status(error), str(facts.pop("message")), **facts)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    detail = f"{where}: {first['msg']}" if where else str(first["msg"])
    return problem(400, detail, code=2, reason="bad_request")


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, str(error.detail), code=2, reason="http")


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "the fleet failed to answer; its log says why", code=1, reason="internal")
