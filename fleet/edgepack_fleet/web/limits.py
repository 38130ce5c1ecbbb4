"""How long a request may be. Refuses what is longer while it arrives; reads nothing itself.

The framework keeps a whole body in memory before it looks at who sent it.
"""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit"]

MAX_BODY = 256 * 1024
MAX_PUSH = 32 * 1024**2
"""Bytes of all metadata in one push."""
PUSH, BLOBS = "/api/v1/repo/publish", "/api/v1/repo/blobs/"


class BodyLimit:
    """Passes requests to APP as far as their bodies are as short as their routes need."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        # A blob goes to the disk as it arrives, from senders that are known; it has its own limit.
        if scope["type"] != "http" or scope["path"].startswith(BLOBS):
            await self._app(scope, receive, send)
            return
        limit = MAX_PUSH if scope["path"] == PUSH else MAX_BODY
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"at most {limit} bytes are read")
            return message

        await self._app(scope, counted, send)
