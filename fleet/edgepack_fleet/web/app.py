"""The main application: REST interface, pages and their files. Listens nowhere by itself."""

import time
from collections.abc import Callable

import anyio.to_thread
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from edgepack_fleet.core.rates import Rates
from edgepack_fleet.service import Service
from edgepack_fleet.web import (
    admin,
    alerts,
    api,
    applicant_pages,
    asking,
    benchmarks,
    browser,
    device_pages,
    history,
    hooks,
    joining,
    metrics,
    monitoring,
    organise,
    pages,
    problems,
    release_pages,
    repo,
    rollout_pages,
    steering,
    stream,
)
from edgepack_fleet.web.description import describe
from edgepack_fleet.web.guard import Guard
from edgepack_fleet.web.limits import BodyLimit
from edgepack_fleet.web.once import Once
from edgepack_fleet.web.record import Record
from edgepack_fleet.web.rendering import STATIC, PageError

__all__ = ["main_app"]

INTERFACE = (
    api, organise, joining, history, repo, admin, hooks, asking, steering, benchmarks, stream,
    monitoring, alerts, metrics,
)  # fmt: skip
PAGES = (browser, pages, applicant_pages, device_pages, rollout_pages, release_pages)
BURST = 1000
"""Requests that a token may make at once: a large push."""


def main_app(service: Service | None, device_url: str = "") -> FastAPI:
    """Return the application; without a SERVICE it can only describe itself.

    Args:
        service: The running fleet.
        device_url: Base URL of the device listener, for enrolment tokens.
    """
    app = FastAPI(
        title="edgepack fleet",
        version="1",
        description="Devices, groups, releases and rollouts.",
        openapi_url="/api/v1/openapi.json",
        # The interactive pages load scripts from elsewhere; nothing here does.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.device_url = device_url
    app.state.streams = set()
    for part in INTERFACE + PAGES:
        app.include_router(part.router)
    app.include_router(stream.live_router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    # The last one is the first to see a request.
    if service is not None:
        rates = Rates(service.settings.max_per_s, BURST, time.monotonic)
        app.add_middleware(Record, audit=service.audit)
        app.add_middleware(Once, answers=service.answers)
        app.add_middleware(Guard, find=service.access.caller, rates=rates)
    app.add_middleware(BodyLimit)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    problems.install(app, browser.problem_page)
    _answer_in_a_thread(app, browser.LoginNeededError, browser.to_login)
    _answer_in_a_thread(app, PageError, browser.say)
    return app


def _answer_in_a_thread(
    app: FastAPI, kind: type[Exception], answer: Callable[[Request, Exception], Response]
) -> None:
    async def handler(request: Request, error: Exception) -> Response:
        return await anyio.to_thread.run_sync(answer, request, error)

    app.add_exception_handler(kind, handler)
