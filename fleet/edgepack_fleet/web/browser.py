"""Who looks at the pages: login, session, role, and where a form comes from.

A browser holds a sealed session instead of a token, in a cookie no script can read and no other
site can send.
"""

from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Form, Request
from starlette.responses import RedirectResponse, Response

from edgepack_fleet.access import COOKIE, ROLES, SESSION_S, Access, Caller, Role
from edgepack_fleet.web.rendering import PageError, page

__all__ = [
    "LoginNeededError",
    "Operator",
    "Viewer",
    "may",
    "problem_page",
    "router",
    "say",
    "to_login",
]

router = APIRouter(include_in_schema=False)


class LoginNeededError(Exception):
    """A page was asked for without a session."""


def to_login(request: Request, _error: Exception) -> Response:
    """Send the browser to the login page and back afterwards."""
    after = quote(request.url.path) if request.method == "GET" else "/"
    return RedirectResponse(f"/login?after={after}", 303)


def say(request: Request, error: Exception) -> Response:
    """Show a `PageError`."""
    assert isinstance(error, PageError)
    return page(request, "problem", error.status, role=_viewer(request), text=str(error))


def problem_page(request: Request, status: int, text: str) -> Response:
    """Show what is wrong, also to those who have not logged in."""
    return page(request, "problem", status, role=_role_if_any(request, status), text=text)


def _role_if_any(request: Request, status: int) -> Role | None:
    if status >= 500 or request.app.state.service is None:
        return None  # what has just failed is not asked once more
    try:
        return _viewer(request)
    except LoginNeededError:
        return None


def may(role: Role, least: Role = "operator") -> bool:
    """Return whether ROLE may do what LEAST may."""
    return ROLES.index(role) >= ROLES.index(least)


def _access(request: Request) -> Access:
    access: Access = request.app.state.service.access
    return access


def _caller(request: Request) -> Caller:
    caller = _access(request).session_caller(request.cookies.get(COOKIE, ""))
    if caller is None:
        raise LoginNeededError
    request.state.caller = caller
    # Before anything of the page is read: what changes from here on, its stream tells.
    request.state.change = request.app.state.service.feed.ends()[1]
    return caller


def _viewer(request: Request) -> Role:
    return _caller(request).role


def at_least(role: Role) -> Callable[[Request], Role]:
    """Return the dependency of a form that whoever has ROLE or more may send, from our pages."""

    def check(request: Request) -> Role:
        found = _viewer(request)
        # The cookie is not sent along from other sites; the origin says so a second time.
        origin = urlsplit(request.headers.get("origin", "")).netloc
        ours = request.method == "GET" or origin == request.url.netloc
        if not ours or not may(found, role):
            raise PageError(403, f"This needs the role {role}")
        return found

    return check


Guarded = Annotated[Access, Depends(_access)]
Viewer = Annotated[Role, Depends(_viewer)]
Operator = Annotated[Role, Depends(at_least("operator"))]


@router.get("/login")
def login_form(request: Request, after: str = "/") -> Response:
    """Show the login page."""
    return page(request, "login", after=after, wrong=False)


@router.post("/login")
def login(
    request: Request,
    access: Guarded,
    token: Annotated[str, Form(max_length=512)],
    after: Annotated[str, Form(max_length=512)] = "/",
) -> Response:
    """Exchange a token for a session."""
    value = access.open_session(token.strip())
    if value is None:
        return page(request, "login", 403, after=after, wrong=True)
    request.state.caller = access.session_caller(value)
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
