"""Writes every change into the audit log before it is answered. What is kept is in `audit`."""

import json
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepack_fleet.audit import Audit, Deed
from edgepack_fleet.web.guard import caller_of
from edgepack_fleet.web.held import Said, hold

__all__ = ["Record"]

READING = frozenset({"GET", "HEAD", "OPTIONS"})
READ = 64 * 1024
"""Bytes of a request in which we look for what it is about."""
BROKE = Said(500, "", b'{"reason": "internal"}')

log = logging.getLogger(__name__)


class Record:
    """Passes requests to APP and writes down what callers changed, or tried to.

    Who nobody knows changes nothing and is not written down: strangers cannot fill the log.
    """

    def __init__(self, app: ASGIApp, audit: Audit) -> None:
        self._app, self._audit = app, audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        heard = bytearray()

        def record(said: Said) -> None:
            self._record(scope, bytes(heard), said)

        try:
            await hold(self._app, scope, _overheard(receive, heard), send, record)
        except Exception:
            await run_in_threadpool(record, BROKE)
            raise

    def _record(self, scope: Scope, sent: bytes, said: Said) -> None:
        caller = caller_of(scope)
        if caller is None:
            return
        name = getattr(scope.get("endpoint"), "__name__", scope["method"].lower())
        address = (scope.get("client") or ("",))[0]
        refused = said.status >= 400
        reason = str(_facts(said.body).get("reason", "refused")) if refused else ""
        deed = Deed(name, scope["path"], said.status, reason)
        try:
            self._audit.record(caller, address, deed, _facts(sent))
        except SQLAlchemyError:
            # It is done; to say that it failed would be wrong, too.
            log.exception("not in the audit log: %s by %s from %s", deed, caller.id, address)


def _overheard(receive: Receive, heard: bytearray) -> Callable[[], Any]:
    async def listen() -> Message:
        message = await receive()
        if len(heard) <= READ:
            heard.extend(message.get("body", b""))
        return message

    return listen


def _facts(text: bytes) -> dict[str, Any]:
    """Return the JSON object in TEXT; empty if it is none, or was too long to be listened to."""
    try:
        found = json.loads(text[: READ + 1]) if text[:1] == b"{" else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
