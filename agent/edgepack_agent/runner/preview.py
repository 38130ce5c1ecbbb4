"""What cameras see, for a person at the device: a page, pictures with answers on them, their state.

The page holds no data and asks for nothing outside; over TCP it asks its reader for the token. A
picture is drawn when somebody looks, not before.
"""

import io
from collections.abc import Callable
from importlib.resources import files

import msgspec
from PIL import Image

from edgepack_agent.runner.connection import Call, Reply, Route
from edgepack_agent.runner.openapi import describe_read
from edgepack_agent.runner.protocol import RequestError
from edgepack_agent.runner.sources import Feed
from edgepack_targets.pipeline.annotate import annotate

__all__ = ["preview_routes"]

QUALITY = 80
_PAGE = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src blob:; connect-src 'self'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_STATE = {"kind": {"type": "string"}, "online": {"type": "boolean"}, "reason": {"type": "string"}}
_FOLDER = _STATE | {"pictures": {"type": "integer"}, "failed": {"type": "integer"}}
_STATES = {
    "type": "object",
    "properties": {
        kind: {"type": "object", "additionalProperties": {"type": "object", "properties": facts}}
        for kind, facts in (("cameras", _STATE), ("folders", _FOLDER))
    },
}


def preview_routes(feed: Feed) -> dict[str, Route]:
    """Return the routes for the cameras that FEED has now."""

    def page(_call: Call) -> Reply:
        html = files("edgepack_agent.runner").joinpath("preview.html").read_bytes()
        return Reply(200, _PAGE, html)

    def cameras(_call: Call) -> Reply:
        told = {camera.source.name: camera.describe() | _last(feed, camera.source.name)
                for camera in feed.cameras}  # fmt: skip
        json = {"content-type": "application/json"}
        found = {"cameras": told, "folders": feed.folders()}
        return Reply(200, json, msgspec.json.encode(found))

    shows = describe_read("A page that shows what the cameras see", "text/html")
    tells = describe_read("How cameras and folders are", schema=_STATES)
    routes = {
        "/preview": Route(page, shows, free=True),
        "/v2/edgepack/cameras": Route(cameras, tells),
    }
    for name in (camera.source.name for camera in feed.cameras):
        about = describe_read(f"What {name} saw last, with the answer drawn on it", "image/jpeg")
        routes[f"/preview/{name}.jpg"] = Route(_picture(feed, name), about)
    return routes


def _last(feed: Feed, name: str) -> dict[str, object]:
    watched = feed.latest.get(name)
    return {"last": watched.said if watched else None}


def _picture(feed: Feed, name: str) -> Callable[[Call], Reply]:
    headers = {"content-type": "image/jpeg", "cache-control": "no-store"}
    return lambda _call: Reply(200, headers, _drawn(feed, name))


def _drawn(feed: Feed, name: str) -> bytes:
    watched = feed.latest.get(name)
    if watched is None:
        raise RequestError(404, f"camera {name} has shown nothing yet", "no_frame")
    file = io.BytesIO()
    annotate(Image.fromarray(watched.frame), watched.answer).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()
