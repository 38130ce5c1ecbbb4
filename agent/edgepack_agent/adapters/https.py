"""Blobs over HTTPS with Range, from a short-lived link of the job. Trusts the fleet's CA alone.

The standard library's client: one request for a run of blocks, read as it comes. Whatever a server
may do wrong has a reason of its own; a redirect is refused, because a link says where to go.
"""

import contextlib
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters.pacing import LOOK_S, Pacer

__all__ = ["BlobLink", "Https", "Links", "read_link"]

CONNECT_S = 10.0
HEAD_S = 30.0
"""Seconds until the head of an answer must be there, however it drips."""
LINK_S = 10.0
MAX_LINK = 2048
HOLE = "{sha256}"


@dataclass(frozen=True, slots=True)
class BlobLink:
    """Where blobs are: host, port, and a path with a hole for the digest."""

    host: str
    port: int
    path: str

    def target(self, sha256: str) -> str:
        """Return what to ask the host for."""
        return self.path.replace(HOLE, sha256)


def read_link(text: str) -> BlobLink:
    """Return the link in TEXT, `https://HOST[:PORT]/...{sha256}...`.

    Raises:
        IntegrityError: it is not one (reason `bad_link`).
    """
    try:
        if len(text) > MAX_LINK or not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("it has characters that no address has, or too many")
        parts = urlsplit(text)
        port = parts.port
        if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or port == 0:
            raise ValueError("it is not https://HOST/...")
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        if path.count(HOLE) != 1 or not path.startswith("/") or parts.fragment:
            raise ValueError(f"there is no single {HOLE} in its path")
    except ValueError as error:
        raise IntegrityError(
            "the link to the model's files cannot be used", why=str(error), reason="bad_link"
        ) from error
    return BlobLink(parts.hostname, port or 443, path)


class Links:
    """The newest link; from any thread.

    Args:
        ask: Asks the fleet for a new one; it arrives by `take`.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask, self._changed = ask, threading.Condition()
        self._link: BlobLink | None = None
        self._count = 0

    @property
    def current(self) -> BlobLink | None:
        """The link that came last; None if there is none, or it was not one."""
        return self._link

    def take(self, text: str) -> None:
        """Take what the fleet says is the link; empty: there is none."""
        with self._changed:
            self._link = None
            with contextlib.suppress(IntegrityError):
                self._link = read_link(text) if text else None
            self._count += 1
            self._changed.notify_all()

    def renew(self, look: Callable[[], None]) -> None:
        """Ask for another link and wait for it, not for ever; LOOK is called meanwhile."""
        with self._changed:
            before = self._count
        self._ask()
        for _ in range(int(LINK_S / LOOK_S)):
            with self._changed:
                if self._count != before or self._changed.wait(LOOK_S):
                    return
            look()


class Https:
    """Blocks from the fleet's device listener.

    Args:
        links: Where blobs are, for now.
        context: Returns how to trust the listener.
    """

    def __init__(self, links: Links, context: Callable[[], ssl.SSLContext]) -> None:
        self._links, self._context = links, context

    @property
    def ready(self) -> bool:
        """Whether there is a link."""
        return self._links.current is not None

    def blocks(
        self, sha256: str, size: int, start: int, count: int, pacer: Pacer
    ) -> Iterator[bytes]:
        """Yield COUNT blocks of a blob from block START, in order.

        Raises:
            UnreachableError: the server does not do what it should; the reason says what.
            IntegrityError: it does not have the blob (reason `blob_missing`).
            EdgepackError: PACER does not let it go on.
        """
        pacer.begin()
        first, end = start * BLOCK_SIZE, min(size, (start + count) * BLOCK_SIZE)
        if first >= end:
            return
        try:
            yield from self._run(sha256, size, first, end, pacer)
        except _ExpiredError:
            self._links.renew(pacer.look)
            yield from self._run(sha256, size, first, end, pacer)

    def _run(self, sha256: str, size: int, first: int, end: int, pacer: Pacer) -> Iterator[bytes]:
        link = self._links.current
        if link is None:
            raise UnreachableError(
                "the fleet offers no link to the model's files", reason="no_link"
            )
        connection = http.client.HTTPSConnection(
            link.host, link.port, timeout=CONNECT_S, context=self._context()
        )
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            with _told(link):
                peer, response = _ask(connection, link.target(sha256), first, end)
            stack.callback(response.close)
            _check(response, sha256, size, first, end)
            body = _Body(peer, response, pacer)
            for at in range(first, end, BLOCK_SIZE):
                with _told(link):
                    block = body.read(min(BLOCK_SIZE, end - at))
                yield block


class _ExpiredError(UnreachableError):
    """The link is no longer good."""

    default_reason = "link_expired"


@contextlib.contextmanager
def _told(link: BlobLink) -> Iterator[None]:
    """Turn what goes wrong on the way into one kind of error."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message or str(error)
        raise UnreachableError(
            f"{link.host}:{link.port} is not the fleet", why=why, reason="wrong_ca"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"{link.host}:{link.port} does not answer",
            why=str(error) or type(error).__name__,
            reason="https_broken",
        ) from error


def _ask(
    connection: http.client.HTTPSConnection, target: str, first: int, end: int
) -> tuple[ssl.SSLSocket, http.client.HTTPResponse]:
    def hang_up() -> None:
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    # Each read has a timeout, but a head may drip for ever; then nobody waits for it any longer.
    guard = threading.Timer(HEAD_S, hang_up)
    guard.daemon = True
    guard.start()
    try:
        connection.connect()
        peer: ssl.SSLSocket = connection.sock
        headers = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        return peer, connection.getresponse()
    finally:
        guard.cancel()


def _check(
    response: http.client.HTTPResponse, sha256: str, size: int, first: int, end: int
) -> None:
    """Check that RESPONSE is the bytes from FIRST to END of the blob, and nothing else."""
    status = response.status
    if status == http.HTTPStatus.OK and first == 0 and end == size:
        wanted_range = None
    elif status == http.HTTPStatus.PARTIAL_CONTENT:
        wanted_range = f"bytes {first}-{end - 1}/{size}"
    else:
        raise _refused(status)
    if response.getheader("Content-Range") != wanted_range or response.length != end - first:
        raise UnreachableError(
            "the answer is of other bytes than were asked for", reason="bad_range"
        )
    if response.getheader("ETag") not in {None, f'"{sha256}"'}:
        raise UnreachableError("the answer is of another blob", reason="etag_changed")
    if response.getheader("Content-Encoding") not in {None, "identity"}:
        raise UnreachableError("the answer is encoded", reason="bad_range")


def _refused(status: int) -> EdgepackError:
    why = f"HTTP status {status}"
    if 300 <= status < 400:
        return UnreachableError("the link leads elsewhere", why=why, reason="redirected")
    if status in {http.HTTPStatus.NOT_FOUND, http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE}:
        return IntegrityError("the fleet does not have the blob", why=why, reason="blob_missing")
    if status in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN, http.HTTPStatus.GONE}:
        return _ExpiredError("the link is not good, or not any more", why=why)
    return UnreachableError("the fleet cannot send files now", why=why, reason="https_error")


class _Body:
    """The bytes of an answer, with a look at the pacer whenever they are waited for."""

    def __init__(
        self, peer: ssl.SSLSocket, response: http.client.HTTPResponse, pacer: Pacer
    ) -> None:
        self._socket, self._response, self._pacer = peer, response, pacer
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._fresh = True
        """Whether some of the body may have come with the head."""

    def read(self, count: int) -> bytes:
        """Return the next COUNT bytes."""
        self._pacer.ask(count)
        found = bytearray()
        while len(found) < count:
            self._wait()
            piece = self._response.read1(count - len(found))
            if not piece:
                raise UnreachableError("the answer ended too early", reason="short_body")
            self._pacer.arrived(len(piece))
            found += piece
            self._pacer.look()
        return bytes(found)

    def _wait(self) -> None:
        if self._fresh:
            self._fresh = False
            return
        while not self._socket.pending() and not self._poll.poll(LOOK_S * 1000):
            self._pacer.look()
