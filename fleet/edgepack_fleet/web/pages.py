"""The web pages: overview, devices, rollouts, releases. Server-rendered; no request leaves here.

A browser holds a sealed session instead of a token, in a cookie no script can read and no other
site can send. Pages show what the REST interface shows, from the same views.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import jinja2
from fastapi import APIRouter, Depends, Form, Request
from sqlalchemy import select
from starlette.responses import HTMLResponse, RedirectResponse, Response

from edgepack.errors import EdgepackError
from edgepack_fleet.access import ROLES, SESSION_S, Role
from edgepack_fleet.adapters.tables import EventRow
from edgepack_fleet.core.model import FAILURES
from edgepack_fleet.service import Service
from edgepack_fleet.web import schemas, views

__all__ = ["STATIC", "LoginNeededError", "PageError", "router", "say", "to_login"]

HERE = Path(__file__).parent
STATIC = HERE / "static"
COOKIE = "edgepack_session"
EVENTS = 30
ACTIONS = frozenset({"start", "approve", "pause", "resume", "cancel", "revert"})
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


class LoginNeededError(Exception):
    """A page was asked for without a session."""


class PageError(Exception):
    """What was asked for cannot be shown; a person reads why, as a page."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def to_login(request: Request, _error: Exception) -> Response:
    """Send the browser to the login page and back afterwards."""
    after = request.url.path if request.method == "GET" else "/"
    return RedirectResponse(f"/login?after={after}", 303)


def say(request: Request, error: Exception) -> Response:
    """Show a `PageError`."""
    assert isinstance(error, PageError)
    return _page(request, "problem", error.status, role=_viewer(request), text=str(error))


def ago(moment: float | None) -> str:
    """Return how long ago MOMENT (Unix seconds) was, in words."""
    if moment is None:
        return "never"
    seconds = max(0.0, time.time() - moment)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now" if seconds < 5 else f"{int(seconds)} s ago"


def absolute(moment: float | None) -> str:
    """Return MOMENT (Unix seconds) as an ISO date and time, UTC."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def size(count: int) -> str:
    """Return COUNT bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(ago=ago, absolute=absolute, size=size)
    return environment


templates = _environment()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _viewer(request: Request) -> Role:
    caller = _service(request).access.session_caller(request.cookies.get(COOKIE, ""))
    if caller is None:
        raise LoginNeededError
    request.state.caller = caller
    return caller.role


Fleet = Annotated[Service, Depends(_service)]
Viewer = Annotated[Role, Depends(_viewer)]


def _page(request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
    facts = {"path": request.url.path, "role": None, "broker": True} | context
    text = templates.get_template(f"{name}.html").render(facts)
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        # With `no-referrer` a browser would hide the origin of our own forms from us, too.
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(text, status, headers)


@router.get("/login")
def login_form(request: Request, after: str = "/") -> Response:
    """Show the login page."""
    return _page(request, "login", after=after, wrong=False)


@router.post("/login")
def login(
    request: Request,
    fleet: Fleet,
    token: Annotated[str, Form(max_length=512)],
    after: Annotated[str, Form(max_length=512)] = "/",
) -> Response:
    """Exchange a token for a session."""
    value = fleet.access.open_session(token.strip())
    if value is None:
        return _page(request, "login", 403, after=after, wrong=True)
    request.state.caller = fleet.access.session_caller(value)
    # Only a path of ours: not a link to another site, which `//host` would be.
    inside = after.startswith("/") and not after.startswith(("//", "/\\"))
    response = RedirectResponse(after if inside else "/", 303)
    response.set_cookie(
        COOKIE,
        value,
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
def logout() -> Response:
    """Forget the session."""
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


@router.get("/")
def overview(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show how the fleet is and what needs attention."""
    with fleet.database.read() as db:
        devices, rollouts = views.all_devices(db), views.all_rollouts(db)
    wanted = [d for d in devices if d.desired]
    return _page(
        request,
        "overview",
        role=role,
        broker=fleet.link.connected,
        devices=devices,
        online=sum(d.online for d in devices),
        wanted=len(wanted),
        on_target=sum(d.bundle == d.desired for d in wanted),
        failing=[d for d in devices if d.job and d.job.status in FAILURES],
        paused=[r for r in rollouts if r.state == "paused"],
        rollouts=_recent(rollouts),
        versions=_versions(devices),
        data=fleet.settings.data,
    )


@router.get("/devices")
def devices(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show all devices."""
    with fleet.database.read() as db:
        found = views.all_devices(db)
    up = fleet.link.connected
    return _page(request, "devices", role=role, broker=up, devices=found)


@router.get("/devices/{device_id}")
def device(request: Request, fleet: Fleet, role: Viewer, device_id: str) -> Response:
    """Show one device and what happened on it."""
    with fleet.database.read() as db:
        found = views.device(db, device_id)
        newest = (
            select(EventRow)
            .where(EventRow.device_id == device_id)
            .order_by(EventRow.received.desc(), EventRow.seq.desc())
            .limit(EVENTS)
        )
        events = [(row.received, row.type, row.body) for row in db.scalars(newest)]
    if found is None:
        raise PageError(404, f"There is no device {device_id}")
    up = fleet.link.connected
    return _page(request, "device", role=role, broker=up, device=found, events=events)


@router.get("/rollouts")
def rollouts(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show all rollouts."""
    with fleet.database.read() as db:
        found = views.all_rollouts(db)
    up = fleet.link.connected
    return _page(request, "rollouts", role=role, broker=up, rollouts=found)


@router.get("/rollouts/{rollout_id}")
def rollout(request: Request, fleet: Fleet, role: Viewer, rollout_id: str) -> Response:
    """Show one rollout on its way."""
    return _rollout_page(request, fleet, role, rollout_id, error=None)


@router.post("/rollouts/{rollout_id}/{action}")
def change_rollout(
    request: Request, fleet: Fleet, role: Viewer, rollout_id: str, action: str
) -> Response:
    """Start, approve, pause, resume, cancel or revert a rollout."""
    # The cookie is not sent along from other sites; the origin says so a second time.
    origin = urlsplit(request.headers.get("origin", "")).netloc
    if origin != request.url.netloc or ROLES.index(role) < ROLES.index("operator"):
        raise PageError(403, "This needs the role operator")
    if action not in ACTIONS:
        raise PageError(404, "There is no such action")
    try:
        getattr(fleet.rollouts, action)(rollout_id, by=request.state.caller.known_as)
    except EdgepackError as error:
        return _rollout_page(request, fleet, role, rollout_id, error=error)
    fleet.poke()
    return RedirectResponse(f"/rollouts/{rollout_id}", 303)


@router.get("/releases")
def releases(request: Request, fleet: Fleet, role: Viewer) -> Response:
    """Show what has been published."""
    found = [views.release(found) for found in fleet.releases()]
    up = fleet.link.connected
    return _page(request, "releases", role=role, broker=up, releases=found[::-1])


def _rollout_page(
    request: Request, fleet: Service, role: Role, rollout_id: str, *, error: EdgepackError | None
) -> Response:
    with fleet.database.read() as db:
        found = views.rollout(db, rollout_id)
    if found is None:
        raise PageError(404, f"There is no rollout {rollout_id}")
    may = ROLES.index(role) >= ROLES.index("operator")
    up = fleet.link.connected
    status = 409 if error else 200
    return _page(
        request, "rollout", status, role=role, broker=up, rollout=found, may=may, error=error
    )


def _recent(rollouts: Sequence[schemas.Rollout]) -> list[schemas.Rollout]:
    """Return the rollouts that need or show something, newest first."""
    live = [r for r in rollouts if r.state in {"running", "paused"}]
    return (live + [r for r in rollouts if r not in live])[:5]


def _versions(devices: Sequence[schemas.Device]) -> list[tuple[str, int]]:
    """Return what devices run, most common first."""
    counts: dict[str, int] = {}
    for found in devices:
        counts[found.bundle or "nothing yet"] = counts.get(found.bundle or "nothing yet", 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
