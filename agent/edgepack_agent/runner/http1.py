"""HTTP/1.1 as bytes: what a head or a body in chunks says, and the head of an answer.

llhttp reads, by httptools. Opens no socket, knows no route.
"""

import http
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import httptools

from edgepack_agent.runner.protocol import RequestError

__all__ = ["CHUNKED", "MAX_HEAD", "Chunks", "Head", "answer_head", "known", "parsed"]

MAX_HEAD = 16 * 1024
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
"""A head for a parser that is to read chunks."""
_KEPT = 64
"""Heads that are kept, of requests and of answers."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a request says."""

    method: str
    path: str
    headers: Mapping[str, str]
    keep: bool
    """Whether the connection may go on."""


class _Heard:
    """What httptools tells of a head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}
        self.keep = True
        self.keeps: Callable[[], bool]

    def on_headers_complete(self) -> None:
        # At the end of a request without a body, which is now, llhttp has forgotten it.
        self.keep = self.keeps()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")


class Chunks:
    """What httptools tells of a body in chunks; what comes behind it, and trailers, are nothing."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False

    def feed(self, parser: Any, data: bytes) -> None:
        """Have PARSER, which tells this object what it hears, read DATA.

        Raises:
            RequestError: 400; these are no chunks.
        """
        try:
            _feed(parser, data)
        except RequestError:
            if not self.complete:
                raise

    def on_body(self, data: bytes) -> None:
        """Hear a piece."""
        if not self.complete:
            self.body += data

    def on_message_complete(self) -> None:
        """Hear the end."""
        self.complete = True


@lru_cache(maxsize=_KEPT)
def known(head: bytes) -> Head:
    """Return what `parsed` does; a client sends the same over and over."""
    return parsed(head)


def parsed(head: bytes) -> Head:
    """Return what HEAD says.

    Raises:
        RequestError: 400 or 431; it is none.
    """
    if len(head) > MAX_HEAD or not head.endswith(b"\r\n\r\n"):
        raise RequestError(431, f"a head has at most {MAX_HEAD} bytes")
    heard = _Heard()
    parser = httptools.HttpRequestParser(heard)
    heard.keeps = parser.should_keep_alive
    _feed(parser, head)
    del heard.keeps  # it refers to the parser, which refers to what hears it
    method, headers = parser.get_method().decode("ascii"), MappingProxyType(heard.headers)
    return Head(method, _path(heard.url), headers, heard.keep)


def _feed(parser: Any, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # the head is read; whatever else is offered, HTTP/1.1 is spoken here
    except httptools.HttpParserError as error:
        raise RequestError(400, f"this is no HTTP request: {error}") from error


def _path(url: bytes) -> str:
    try:
        path = httptools.parse_url(url).path or b"/"
    except httptools.HttpParserInvalidURLError as error:
        raise RequestError(400, "this is no path") from error
    return unquote(path.decode("latin-1")).rstrip("/") or "/"


@lru_cache(maxsize=_KEPT)
def answer_head(status: int, headers: tuple[tuple[str, str], ...], *, last: bool) -> bytes:
    """Return the head of an answer, but for its length and its end."""
    lines = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if last:
        lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")
