"""`Idempotency-Key`: a POST that is sent again gets the answer it got, and is not done again."""

import re

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepack.errors import UsageError
from edgepack_fleet.idempotency import Answer, Answers
from edgepack_fleet.web.guard import PREFIX, caller_of, given_token
from edgepack_fleet.web.held import Said, hold
from edgepack_fleet.web.problems import answer_to, problem

__all__ = ["Once"]

KEY = re.compile(r"[\x21-\x7e]{1,255}")
UNDECIDED = frozenset({401, 403, 413, 429})
"""Answers that say nothing about the request: it may be sent again."""


class Once:
    """Passes a request to APP unless it has been answered before."""

    def __init__(self, app: ASGIApp, answers: Answers) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        key = _key(scope)
        if key is None or caller_of(scope) is None:
            await self._app(scope, receive, send)
            return
        if not KEY.fullmatch(key):
            refusal = problem(
                400, "an Idempotency-Key has 1 to 255 visible characters", code=2, reason="bad_key"
            )
            await refusal(scope, receive, send)
            return
        try:
            body = await _whole(receive)
            await self._serve(key, body, scope, receive, send)
        except HTTPException as error:
            await problem(error.status_code, error.detail, code=2, reason="too_long")(
                scope, receive, send
            )
        except UsageError as error:
            await answer_to(error)(scope, receive, send)

    async def _serve(
        self, key: str, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        token = given_token(scope)
        facts = (scope["method"].encode(), scope["path"].encode(), scope["query_string"])
        request = b"\0".join((*facts, body))
        known = await run_in_threadpool(self._answers.begin, token, key, request)
        if known is not None:
            replay = Response(known.body, known.status, media_type=known.media_type or None)
            replay.headers["Idempotent-Replayed"] = "true"
            await replay(scope, receive, send)
            return

        def keep(said: Said) -> None:
            if said.status >= 500 or said.status in UNDECIDED:
                self._answers.forget(token, key)
            else:
                self._answers.finish(token, key, Answer(said.status, said.media_type, said.body))

        # It must be kept before it is told, or it could be told and done again.
        try:
            await hold(self._app, scope, _again(body, receive), send, keep)
        except Exception:
            await run_in_threadpool(self._answers.forget, token, key)
            raise


def _key(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(PREFIX):
        return None
    return Headers(scope=scope).get("idempotency-key")


async def _whole(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what receives BODY, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
