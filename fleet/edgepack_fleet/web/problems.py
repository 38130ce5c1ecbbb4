"""Errors over HTTP: problem documents (RFC 9457). Says what our errors say, nothing about code.

Whoever looks with a browser at what is no part of the REST interface gets the same as a page.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack.errors import EdgepackError, UsageError
from edgepack_fleet.adapters.database import is_passing
from edgepack_fleet.refusal import RefusedError

__all__ = ["answer_to", "install", "problem"]

BY_REASON = {
    "unknown_applicant": 404,
    "unknown_device": 404,
    "unknown_entry": 404,
    "unknown_group": 404,
    "unknown_release": 404,
    "unknown_request": 404,
    "unknown_rollout": 404,
    "unknown_token": 404,
    "unknown_webhook": 404,
    "too_many_requests": 409,
    "no_device_fits": 409,
    "unknown_alert": 404,
    "too_many_webhooks": 409,
    "revoked": 409,
    "wrong_state": 409,
    "superseded": 409,
    "devices_behind": 409,
    "exists": 409,
    "filter_group": 409,
    "group_in_use": 409,
    "home_group": 409,
    "not_a_filter": 409,
    "session_open": 409,
    "idempotency_busy": 409,
    "idempotency_mismatch": 422,
    "disk_full": 507,
}
REASONS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_long",
    416: "bad_range",
}
"""What the web framework refuses by itself."""

WORDS = {
    HTTPStatus.NOT_FOUND.phrase: "There is no such page",
    HTTPStatus.METHOD_NOT_ALLOWED.phrase: "This page cannot be asked for in that way",
}
"""What people are told where a program is told a word of HTTP."""
MOST_ERRORS = 20

RETRY_S = 5
"""Seconds after which to ask again when the database was busy."""
INTERFACE = ("/api/", "/metrics", "/static/")
"""Paths that programs ask for, whatever they say they accept."""
Page = Callable[[Request, int, str], Response]
"""Returns a page that says what is wrong: its status, and a sentence."""
Handler = Callable[[Request, Exception], Awaitable[Response]]
log = logging.getLogger(__name__)


def problem(status: int, detail: str, **facts: Any) -> JSONResponse:
    """Return a problem document; FACTS are added to it."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status}
    return JSONResponse(
        body | {"detail": detail} | facts,
        status,
        headers=headers,
        media_type="application/problem+json",
    )


def install(app: Starlette, page: Page | None = None) -> None:
    """Let APP answer every error with a problem document; people get a PAGE, if it has any."""
    handlers: dict[type[Exception], Handler] = {
        EdgepackError: _ours,
        RequestValidationError: _invalid,
        HTTPException: _http,
        SQLAlchemyError: _database,
        Exception: _unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, _for_everybody(handler, page) if page else handler)


def _for_everybody(handler: Handler, page: Page) -> Handler:
    async def answer(request: Request, error: Exception) -> Response:
        said = await handler(request, error)
        if not _is_for_people(request):
            return said
        detail = json.loads(bytes(said.body))["detail"]
        text = WORDS.get(detail, detail)
        shown = await run_in_threadpool(page, request, said.status_code, text)
        for name in ("allow", "retry-after"):
            if name in said.headers:
                shown.headers[name] = said.headers[name]
        return shown

    return answer


def _is_for_people(request: Request) -> bool:
    wanted = "text/html" in request.headers.get("accept", "")
    return wanted and not request.url.path.startswith(INTERFACE)


def _status(error: EdgepackError) -> int:
    if isinstance(error, RefusedError):
        return 403
    return BY_REASON.get(error.reason, 400 if isinstance(error, UsageError) else 422)


def answer_to(error: EdgepackError) -> JSONResponse:
    """Return the problem document that says ERROR."""
    facts = error.as_dict()
    return problem(_status(error), str(facts.pop("message")), **facts)


async def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgepackError)
    return answer_to(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        {"where": ".".join(str(part) for part in e["loc"]), "why": str(e["msg"])}
        for e in error.errors()[:MOST_ERRORS]
    ]
    where = found[0]["where"].partition(".")[2]
    detail = f"{where}: {found[0]['why']}" if where else found[0]["why"]
    return problem(400, detail, code=2, reason="bad_request", errors=found)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = REASONS.get(error.status_code, "http")
    answer = problem(error.status_code, str(error.detail), code=2, reason=reason)
    # Which methods a route has, how to log in: the standard wants it said there, too.
    answer.headers.update(error.headers or {})
    return answer


async def _database(request: Request, error: Exception) -> Response:
    if not is_passing(error):
        return await _unexpected(request, error)
    log.warning("%s %s: the database is busy", request.method, request.url.path)
    answer = problem(503, "the database has too much to do; ask again", code=7, reason="busy")
    answer.headers["Retry-After"] = str(RETRY_S)
    return answer


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "the fleet failed to answer; its log says why", code=1, reason="internal")
