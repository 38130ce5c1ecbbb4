"""Who asks, and whether they may: callers, roles and the rate of requests. Does nothing for them.

Who asks is found out once, before anything of a request is read, and stands in its state.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from edgepack_fleet.access import ROLES, Caller, Role
from edgepack_fleet.core.rates import Rates
from edgepack_fleet.web.problems import problem

__all__ = [
    "PREFIX",
    "Admin",
    "Guard",
    "Operator",
    "Viewer",
    "Who",
    "at_least",
    "caller_of",
    "given_token",
    "service_of",
    "who_asks",
]

PREFIX = "/api/v1"
bearer = HTTPBearer(
    auto_error=False,
    description="An access token of `edgepack fleet access create`, or of `fleet tokens show`",
)


def given_token(scope: Scope) -> str:
    """Return the bearer token of a request; empty: it has none."""
    header = Headers(scope=scope).get("authorization")
    scheme, token = get_authorization_scheme_param(header)
    return token if scheme.lower() == "bearer" else ""


def caller_of(scope: Scope) -> Caller | None:
    """Return who asks; None: nobody we know."""
    caller: Caller | None = scope.get("state", {}).get("caller")
    return caller


class Guard:
    """Finds out who asks APP, and refuses those who ask too much (429).

    Args:
        app: What comes next.
        find: Returns whose token it is.
        rates: Counts requests by caller.
    """

    def __init__(self, app: ASGIApp, find: Callable[[str], Caller | None], rates: Rates) -> None:
        self._app, self._find, self._rates = app, find, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = given_token(scope) if scope["path"].startswith(PREFIX) else ""
        caller = await run_in_threadpool(self._find, token) if token else None
        scope.setdefault("state", {})["caller"] = caller
        wait = self._rates.take(caller.id) if caller else 0.0
        if wait:
            answer = problem(429, "too many requests with this token", code=2, reason="too_many")
            answer.headers["Retry-After"] = str(math.ceil(wait))
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def at_least(role: Role) -> Callable[..., Role]:
    """Return the dependency that lets in whoever has ROLE or more."""

    def check(
        request: Request,
        # Guard has read it; here it stands for the description of the interface.
        _given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Role:
        caller = caller_of(request.scope)
        if caller is None:
            raise HTTPException(401, "give a valid token: Authorization: Bearer TOKEN")
        if ROLES.index(caller.role) < ROLES.index(role):
            raise HTTPException(403, f"this needs the role {role}; the token's is {caller.role}")
        return caller.role

    return check


def who_asks(request: Request) -> str:
    """Return who asks, for the record; comes after a role was looked at."""
    caller = caller_of(request.scope)
    return caller.known_as if caller else ""


def service_of(request: Request) -> Any:
    """Return the running fleet."""
    return request.app.state.service


Viewer: Any = Depends(at_least("viewer"))
Operator: Any = Depends(at_least("operator"))
Admin: Any = Depends(at_least("admin"))
Who = Annotated[str, Depends(who_asks)]
