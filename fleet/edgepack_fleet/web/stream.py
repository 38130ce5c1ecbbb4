"""Changes as server-sent events. A slow reader waits for nobody, and nobody for it.

Nothing is queued for a reader: it is told a page of the kept changes, and then the next, at its
own pace. Who comes back says what it has heard last; who was away too long is told so.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from edgepack.errors import UsageError
from edgepack_fleet.access import COOKIE
from edgepack_fleet.adapters.feed import Feed
from edgepack_fleet.adapters.tables import ChangeRow
from edgepack_fleet.core.changes import cloud_event
from edgepack_fleet.service import Service
from edgepack_fleet.web import queries
from edgepack_fleet.web.guard import PREFIX, Viewer, given_token, service_of

__all__ = ["live_router", "router"]

PAGE = 100
QUIET_S = 15.0
"""Seconds after which a stream shows that it is alive, and looks whether its token still is."""
MOST = 100
"""Streams at once."""
GAP = "event: edgepack.stream.gap\ndata: {}\n\n"

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX)
live_router = APIRouter(include_in_schema=False)
"""The same for pages: a browser has a session instead of a token."""


class EventStream(StreamingResponse):
    """The media type, for the description of the interface."""

    media_type = "text/event-stream"


@router.get("/events/stream", dependencies=[Viewer], response_class=EventStream)
async def stream_events(
    request: Request,
    fleet: Fleet,
    asked: Annotated[queries.StreamQuery, Query()],
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> EventStream:
    """Tell changes of rollouts and devices as they happen: CloudEvents, one an event.

    Without `Last-Event-ID` it begins now. `edgepack.stream.gap` says that what was asked for is
    not kept any more: read the lists again.
    """
    token = given_token(request.scope)
    return await _open(
        request, lambda: fleet.access.caller(token) is not None, last_event_id, asked.type
    )


@live_router.get("/live", response_class=EventStream)
async def live(
    request: Request,
    fleet: Fleet,
    after: Annotated[str | None, Query(max_length=20)] = None,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> EventStream:
    """Tell a page what has changed since change AFTER, for as long as its session lasts.

    A browser that comes back says by itself which one it has heard last.
    """
    session = request.cookies.get(COOKIE, "")

    def still() -> bool:
        return fleet.access.session_caller(session) is not None

    if not await run_in_threadpool(still):
        raise HTTPException(401, "log in first")
    return await _open(request, still, last_event_id or after)


async def _open(
    request: Request,
    still: Callable[[], bool],
    last_event_id: str | None = None,
    types: Sequence[str] = (),
) -> EventStream:
    """Return the stream of changes for whoever sent REQUEST.

    Args:
        request: What it answers.
        still: Whether they may still listen; asked whenever it is quiet.
        last_event_id: The last number they have heard; None: it begins now.
        types: What they are told; empty: everything.

    Raises:
        UsageError: LAST_EVENT_ID is not a number of ours.
        HTTPException: there are too many streams (429).
    """
    fleet: Service = request.app.state.service
    after = _number(last_event_id)
    streams = request.app.state.streams
    if len(streams) >= MOST:
        raise HTTPException(429, f"at most {MOST} streams at once", {"Retry-After": "60"})
    oldest, newest = await run_in_threadpool(fleet.feed.ends)
    reader = _Reader(fleet, still, frozenset(types))
    reader.at = newest if after is None else after
    reader.gap = after is not None and not oldest - 1 <= after <= newest
    return EventStream(reader.tell(streams), headers={"Cache-Control": "no-store"})


class _Reader:
    """One stream.

    Args:
        fleet: The running fleet.
        still: Whether it may go on: it ends when the token or the session does.
        types: What it is told; empty: everything.
    """

    def __init__(self, fleet: Service, still: Callable[[], bool], types: frozenset[str]) -> None:
        self._fleet, self._still, self._types = fleet, still, types
        self.at, self.gap = 0, False

    async def tell(self, streams: set[object]) -> AsyncIterator[str]:
        """Yield the stream; it is in STREAMS as long as it lasts."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        feed: Feed = self._fleet.feed

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before its stream
                loop.call_soon_threadsafe(news.set)

        streams.add(self)
        feed.listen(wake)
        try:
            yield GAP if self.gap else ": here\n\n"
            if self.gap:
                self.at = (await run_in_threadpool(feed.ends))[1]
            asked = loop.time()
            while not feed.closed:
                if loop.time() - asked >= QUIET_S:  # however much there is to tell
                    if not await run_in_threadpool(self._still):
                        return
                    asked = loop.time()
                news.clear()
                found = await run_in_threadpool(feed.after, self.at, PAGE)
                for row in found:
                    self.at = row.id
                    if not self._types or row.type in self._types:
                        yield self._said(row)
                if not found and not await _comes(news):
                    yield ": alive\n\n"
        finally:
            feed.leave(wake)
            streams.discard(self)

    def _said(self, row: ChangeRow) -> str:
        change = (row.type, row.subject, row.data)
        document = cloud_event(self._fleet.source, row.id, row.time, change)
        data = json.dumps(document, separators=(",", ":"))
        return f"id: {row.id}\nevent: {row.type}\ndata: {data}\n\n"


async def _comes(news: asyncio.Event) -> bool:
    """Wait for NEWS, and return whether there was any in time."""
    try:
        await asyncio.wait_for(news.wait(), QUIET_S)
    except TimeoutError:
        return False
    return True


def _number(last_event_id: str | None) -> int | None:
    if last_event_id is None:
        return None
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
        raise UsageError("Last-Event-ID is not one of ours", reason="bad_request")
    return int(last_event_id)
