"""One HTTP/1.1 connection: a thread reads a request, has it answered, writes the answer.

httptools reads heads and chunked bodies; a body of known length goes from the socket to where the
tensors are read from, with no copy between (ADR 28). Knows no route and no model.
"""

import contextlib
import math
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httptools
import numpy as np

from edgepack_agent.runner import http1
from edgepack_agent.runner.protocol import HEADER_LENGTH, RequestError

__all__ = ["DEADLINE_S", "App", "Call", "Connection", "Reply", "Route", "late"]

DEADLINE_S = 30.0
"""Seconds that a client has for its request, the model for its answer, a client to take it."""
_IDLE_S = 75.0
_LINGER_S = 2.0
"""For who still sends what was refused: a connection that is cut takes the answer along."""
_PIECE = 64 * 1024
_SHORT = 2048
"""Bytes that a head may have that is kept."""
_ALIGNED = 64
"""Bytes: what vector units like tensors to start at."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    then: Callable[[], None] | None = None
    """What is left to do once the answer is on its way."""


@dataclass(slots=True)
class Call:
    """A request, and the right to answer it."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names are in lower case."""
    over_tcp: bool
    body: memoryview = field(default_factory=lambda: memoryview(b""))
    patience_s: float = math.inf
    _due: float = math.inf
    _claimed: threading.Lock = field(default_factory=threading.Lock)

    def wait_at_most(self, patience_s: float) -> None:
        """Have this request refused PATIENCE_S seconds from now, whatever the model does."""
        self.patience_s, self._due = patience_s, time.monotonic() + patience_s

    def is_late(self, now: float) -> bool:
        """Return whether at NOW, of `time.monotonic`, it is too late for an answer."""
        return now > self._due

    def claim(self) -> bool:
        """Return whether it is the caller who answers: true once."""
        return self._claimed.acquire(blocking=False)


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path."""

    answer: Callable[[Call], Reply]
    about: Mapping[str, Any]
    """What OpenAPI calls an operation: what is asked here, and what is answered."""
    methods: tuple[str, ...] = ("GET", "HEAD")
    free: bool = False
    """Whether whoever asks needs no token."""


class App(Protocol):
    """What a connection asks for answers."""

    @property
    def limit(self) -> int:
        """Bytes that a body may have."""
        ...

    def admit(self, call: Call) -> Route:
        """Return what answers CALL, whose body is not read yet.

        Raises:
            RequestError: nothing does.
        """
        ...

    def refuse(self, error: Exception) -> Reply:
        """Return what to say after ERROR."""
        ...

    def count(self, reply: Reply) -> Mapping[str, str]:
        """Count REPLY and return the headers that every answer has beside its own."""
        ...


class _GoneError(Exception):
    """The client has said its last word."""


class Connection:
    """A connected client.

    Args:
        sock: Connected, blocking.
        app: Who answers.
        leaving: A descriptor that is readable when idle connections are to end.
        closing: Whether connections are to end after their answer.
    """

    def __init__(
        self, sock: socket.socket, app: App, leaving: int, closing: Callable[[], bool]
    ) -> None:
        self._sock, self._app, self._closing = sock, app, closing
        self._over_tcp = sock.family != socket.AF_UNIX
        _prepare(sock)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(leaving, select.POLLIN)
        self._ahead = b""
        """Bytes of the next request, or of this one's body, that have come already."""
        self._begun = self._whole = False
        """Whether the body of this request was read, to some part or to its end."""
        self.over = False
        """Whether the client has its last answer, though the thread is still with the model."""
        self._going = False
        self.free_since: float | None = time.monotonic()
        """Since when it asks for nothing that is known; None: it does, or it has to go."""
        self._call: Call | None = None
        self._taken_by = math.inf
        """When the client must have taken its answer."""

    def serve(self) -> None:
        """Answer requests until one side has had enough."""
        with self._sock, contextlib.suppress(OSError, _GoneError):
            while self._await() and self._exchange():
                pass

    def let_go(self) -> None:
        """End the connection; for who needs its place. What has come already is answered."""
        self._going, self.free_since = True, None
        self._shut(socket.SHUT_RD)

    def cut_off(self) -> None:
        """End the connection, whatever it waits for."""
        self._shut(socket.SHUT_RDWR)

    def expire(self, now: float) -> None:
        """End what is late, an answer or a client that takes one; never blocks."""
        if now > self._taken_by:
            # The kernel's limit starts anew with every byte that is taken.
            self.cut_off()
        call = self._call
        if call is None or not call.is_late(now) or not call.claim():
            return
        reply = self._app.refuse(late(call.patience_s))
        data = _written(reply, self._app.count(reply), last=True, bare=False)
        with contextlib.suppress(OSError):
            self._sock.send(data, socket.MSG_DONTWAIT)
        self.cut_off()
        self.over = True

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(how)

    def _await(self) -> bool:
        """Return whether a request comes, before it is time to go."""
        self._rest()
        if self._ahead:
            return True
        ready = {fd for fd, _ in self._poll.poll(_IDLE_S * 1000)}
        return self._sock.fileno() in ready

    def _rest(self) -> None:
        self.free_since = None if self._going else time.monotonic()

    def _exchange(self) -> bool:
        """Answer one request; return whether there may be another."""
        head = self._head()
        self.free_since = None  # not before: half a head, for ever, is the cheapest siege
        try:
            said = self._said(head)
        except RequestError as error:
            self._send(self._app.refuse(error), last=True)
            return self._linger()
        call = Call(said.method, said.path, said.headers, self._over_tcp)
        reply = self._replied(call)
        if reply is None:
            return False
        last = (
            not said.keep or self._going or self._closing() or "transfer-encoding" in call.headers
        )
        last = last or not (self._whole or self._skipped(call))
        try:
            self._send(reply, last=last, bare=call.method == "HEAD")
        finally:
            self._follow_up(reply)
        return self._linger() if last and not self._whole else not last

    def _replied(self, call: Call) -> Reply | None:
        """Return what to answer to CALL; None: it was answered, that it is too late."""
        self._call, self._begun, self._whole = call, False, False
        try:
            route = self._app.admit(call)
            call.body = self._body(call)
            self._whole = True
            found: Reply | Exception = route.answer(call)
        except _GoneError:
            raise
        except Exception as error:  # noqa: BLE001 - each request gets an answer
            found = error
        self._call = None
        if not call.claim():
            return None
        return self._app.refuse(found) if isinstance(found, Exception) else found

    def _follow_up(self, reply: Reply) -> None:
        try:
            if reply.then:
                reply.then()
        except Exception as error:  # noqa: BLE001 - whoever asked has the answer, and may go on
            self._app.refuse(error)

    def _said(self, head: bytes) -> http1.Head:
        # What is kept is short, and neither a stranger's nor a token: those come over TCP.
        repeats = not self._over_tcp and len(head) <= _SHORT
        return http1.known(head) if repeats else http1.parsed(head)

    def _head(self) -> bytes:
        """Return the next head; what came after it is in `_ahead`."""
        data, end_s = self._ahead, time.monotonic() + DEADLINE_S
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > http1.MAX_HEAD:
                break
            data += self._more()
            if time.monotonic() > end_s:
                raise _GoneError
        self._ahead = data[end + 4 :] if end >= 0 else b""
        return data[: end + 4] if end >= 0 else data

    def _more(self) -> bytes:
        try:
            data = self._sock.recv(_PIECE)
        except (BlockingIOError, ConnectionError) as error:
            raise _GoneError from error
        if not data:
            raise _GoneError
        return data

    def _body(self, call: Call) -> memoryview:
        """Return the body of CALL.

        Raises:
            RequestError: 408 or 413; it does not come, or not to an end.
        """
        size = int(call.headers.get("content-length", "0"))
        if size > self._app.limit:
            raise _too_large(self._app.limit)
        if call.headers.get("expect", "").lower() == "100-continue":
            self._go_on()
        self._begun = True
        if "transfer-encoding" in call.headers:
            return memoryview(self._chunked())
        body = _room(call.headers, size)
        got = min(size, len(self._ahead))
        body[:got] = self._ahead[:got]
        self._ahead = self._ahead[got:]
        end = time.monotonic() + DEADLINE_S
        if got < size and self._over_tcp:
            # Many clients send the body when the head is acknowledged: not in 40 ms, but now.
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        while got < size:
            got += self._into(body[got:], end)
        return body

    def _go_on(self) -> None:
        try:
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        except OSError as error:
            raise _GoneError from error

    def _into(self, place: memoryview, end: float) -> int:
        try:
            got = self._sock.recv_into(place, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            got = -1
        except ConnectionError as error:
            raise _GoneError from error
        if got == 0:
            raise _GoneError
        if got < 0 or time.monotonic() > end:
            raise RequestError(408, "the request did not come", "slow_request")
        return got

    def _chunked(self) -> bytearray:
        """Return a body that says at its end how long it is. The connection ends with it."""
        heard = http1.Chunks()
        parser = httptools.HttpRequestParser(heard)
        end = time.monotonic() + DEADLINE_S
        # Not the head that came: one that asks for an upgrade would make it a request of no body.
        data, self._ahead = http1.CHUNKED + self._ahead, b""
        while True:
            heard.feed(parser, data)
            if len(heard.body) > self._app.limit:
                raise _too_large(self._app.limit)
            if heard.complete:
                return heard.body
            if time.monotonic() > end:
                raise RequestError(408, "the request did not come", "slow_request")
            data = self._more()

    def _skipped(self, call: Call) -> bool:
        """Read past the body of a refused request, if it is short; return whether that is done."""
        size = int(call.headers.get("content-length", "0"))
        unsure = {"transfer-encoding", "expect"} & call.headers.keys()
        if self._begun or unsure or size > _PIECE:
            return False
        self._rest()
        end = time.monotonic() + _LINGER_S
        while len(self._ahead) < size:
            if not _comes(self._sock, end):
                return False
            self._ahead += self._more()
        self._ahead = self._ahead[size:]
        return True

    def _send(self, reply: Reply, *, last: bool, bare: bool = False) -> None:
        data = _written(reply, self._app.count(reply), last=last, bare=bare)
        self._taken_by = time.monotonic() + DEADLINE_S
        self._sock.sendall(data)
        self._taken_by = math.inf

    def _linger(self) -> bool:
        """Hear a client out that has its answer before it has said all; False."""
        self._shut(socket.SHUT_WR)
        self._rest()
        end = time.monotonic() + _LINGER_S
        self._sock.settimeout(_LINGER_S)
        while time.monotonic() < end and self._sock.recv(_PIECE):
            pass
        return False


def _prepare(sock: socket.socket) -> None:
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # In the kernel and not by `settimeout`, which costs a call more for every piece.
    patience = struct.pack("ll", int(DEADLINE_S), 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, patience)


def _comes(sock: socket.socket, end: float) -> bool:
    """Return whether something comes before END, of `time.monotonic`."""
    left = end - time.monotonic()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return left > 0 and bool(poll.poll(left * 1000))


def _room(headers: Mapping[str, str], size: int) -> memoryview:
    """Return SIZE bytes of memory in which the tensors of a request start where they should."""
    text = headers.get(HEADER_LENGTH, "0")
    split = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -(memory.ctypes.data + split) % _ALIGNED
    return memory.data[start : start + size]


def _written(reply: Reply, more: Mapping[str, str], *, last: bool, bare: bool) -> bytes:
    head = http1.answer_head(reply.status, (*reply.headers.items(), *more.items()), last=last)
    size = b"content-length: %d\r\n\r\n" % len(reply.body)
    return head + size + (b"" if bare else reply.body)


def late(patience_s: float) -> RequestError:
    """Return what to say when there is no answer within PATIENCE_S seconds.

    A client that waits less than we would can make any model late: that is told apart.
    """
    reason = "deadline" if patience_s >= DEADLINE_S else "client_deadline"
    return RequestError(504, f"no answer within {patience_s:g} s", reason)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"a request for this model has at most {limit} bytes", "too_large")
