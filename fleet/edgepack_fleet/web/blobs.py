"""Blobs over HTTP with Range, a piece at a time: memory stays constant. Knows no links."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from edgepack.errors import UsageError
from edgepack_fleet.adapters.content import Content
from edgepack_fleet.web.problems import problem

__all__ = ["Span", "blob_response", "read_range"]

PIECE = 512 * 1024
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes from `first` to `end` of `size`."""

    first: int
    end: int
    size: int

    @property
    def partial(self) -> bool:
        """Whether it is not all of them."""
        return (self.first, self.end) != (0, self.size)


def read_range(header: str | None, size: int) -> Span | None:
    """Return what the Range HEADER asks for of SIZE bytes; None if there is nothing of it.

    A header that asks for something else than one range of bytes is ignored, as the standard
    allows.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None:
        return Span(0, size, size)
    first, last = int(found[1]), int(found[2] or size)
    if first >= size or last < first:
        return None
    return Span(first, min(last + 1, size), size)


async def blob_response(content: Content, sha256: str, range_header: str | None) -> Response:
    """Return the blob SHA256 of CONTENT, or the part of it that RANGE_HEADER asks for."""
    size = await run_in_threadpool(content.size, sha256)
    if size is None:
        code = UsageError.exit_code
        return problem(404, f"no blob {sha256[:12]}", code=code, reason="blob_missing")
    span = read_range(range_header, size)
    if span is None:
        refusal = problem(416, f"the blob has {size} bytes", reason="bad_range")
        refusal.headers["Content-Range"] = f"bytes */{size}"
        return refusal
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(span.end - span.first),
        "ETag": f'"{sha256}"',
        "Cache-Control": "private, immutable, max-age=86400",
    }
    if span.partial or range_header:
        headers["Content-Range"] = f"bytes {span.first}-{span.end - 1}/{size}"
    return StreamingResponse(
        _pieces(content, sha256, span),
        206 if "Content-Range" in headers else 200,
        headers,
        "application/octet-stream",
    )


async def _pieces(content: Content, sha256: str, span: Span) -> AsyncIterator[bytes]:
    pieces = content.pieces(sha256, span.first, span.end, PIECE)
    try:
        while piece := await run_in_threadpool(next, pieces, b""):
            yield piece
    finally:
        pieces.close()
