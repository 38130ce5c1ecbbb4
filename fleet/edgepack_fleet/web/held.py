"""Holds an answer back until something has been written down about it. Judges nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Said", "hold"]


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer."""

    status: int
    media_type: str
    body: bytes


async def hold(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, first: Callable[[Said], None]
) -> None:
    """Let APP answer; call FIRST with the answer, in a thread, before any of it is sent."""
    waiting: list[Message] = []

    async def listen(message: Message) -> None:
        waiting.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await run_in_threadpool(first, _said(waiting))
            for each in waiting:
                await send(each)

    await app(scope, receive, listen)


def _said(messages: list[Message]) -> Said:
    head, *parts = messages
    media_type = Headers(raw=head["headers"]).get("content-type", "")
    return Said(int(head["status"]), media_type, b"".join(p.get("body", b"") for p in parts))
