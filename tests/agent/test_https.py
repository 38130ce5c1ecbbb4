"""Blobs over HTTPS against servers that do everything wrong a server can do."""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.test_chunks import CONTENT, SHA256, SIZE
from edgepack.errors import EdgepackError, IntegrityError, UnreachableError
from edgepack.topics import BLOCK_SIZE
from edgepack_agent.adapters import https
from edgepack_agent.adapters.https import Https, Links, read_link
from edgepack_agent.adapters.pacing import Cap, Pacer
from edgepack_agent.core.pace import Limits
from edgepack_fleet.adapters.pki import Pki

COUNT = -(-SIZE // BLOCK_SIZE)
Answer = Callable[["Peer"], None]


class Peer:
    """A connection that has been asked for bytes."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.sock.settimeout(20)
        text = b""
        while not text.endswith(b"\r\n\r\n"):
            piece = sock.recv(1)
            if not piece:
                raise ConnectionError
            text += piece
        self.path = text.split()[1].decode()
        head = text.decode().lower()
        first, last = head.partition("range: bytes=")[2].partition("\r\n")[0].split("-")
        self.first, self.end = int(first), int(last) + 1

    def head(self, status: str = "206 Partial Content", **changes: str | None) -> None:
        headers: dict[str, str | None] = {
            "Content-Range": f"bytes {self.first}-{self.end - 1}/{SIZE}",
            "Content-Length": str(self.end - self.first),
            "ETag": f'"{SHA256}"',
        }
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        self.sock.sendall("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())

    def body(self, count: int | None = None) -> None:
        self.sock.sendall(CONTENT[self.first : self.end][:count])

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Server:
    """Gives one ANSWER after the other, the last one for ever."""

    def __init__(self, context: ssl.SSLContext, *answers: Answer) -> None:
        self.context, self.answers = context, list(answers)
        self.paths: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.threads: list[threading.Thread] = [threading.Thread(target=self.run)]
        self.threads[0].start()

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def run(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(plain,)))
            self.threads[-1].start()

    def serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            plain,
            self.context.wrap_socket(plain, server_side=True) as sock,
        ):
            peer = Peer(sock)
            self.paths.append(peer.path)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            answer(peer)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(20)


class World:
    """The fleet's CA, servers under it, and a device that trusts it."""

    def __init__(self, root: Path) -> None:
        self.pki = Pki(root / "pki")
        self.serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serving.load_cert_chain(*self.pki.pair("server"))
        self.trusting = ssl.create_default_context(cadata=self.pki.ca_pem)
        self.servers: list[Server] = []
        self.links = Links(lambda: None)

    def server(self, *answers: Answer) -> Server:
        self.servers.append(Server(self.serving, *answers))
        self.offer(self.servers[-1])
        return self.servers[-1]

    def offer(self, server: Server) -> None:
        self.links.take(f"https://127.0.0.1:{server.port}/blobs/{{sha256}}?seal=1")

    def fetch(self, start: int = 0, count: int = COUNT, **more: Any) -> bytes:
        limits = more.pop("limits", Limits(0.0, 3600.0, 3600.0))
        pacer = Pacer(limits, Cap(None), **more)
        client = Https(self.links, lambda: self.trusting)
        return b"".join(client.blocks(SHA256, SIZE, start, count, pacer))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    for server in found.servers:
        server.close()


def good(peer: Peer) -> None:
    peer.head()
    peer.body()


def test_all_of_a_blob_or_a_run_of_its_blocks(world: World) -> None:
    server = world.server(good)
    assert world.fetch() == CONTENT
    assert world.fetch(3, 2) == CONTENT[3 * BLOCK_SIZE : 5 * BLOCK_SIZE]
    assert world.fetch(COUNT - 1, 1) == CONTENT[(COUNT - 1) * BLOCK_SIZE :]
    assert world.fetch(COUNT, 0) == b""
    assert server.paths == [f"/blobs/{SHA256}?seal=1"] * 3


def test_a_whole_answer_is_as_good_where_all_was_asked_for(world: World) -> None:
    def whole(peer: Peer) -> None:
        peer.head("200 OK", Content_Range=None)
        peer.body()

    world.server(whole)
    assert world.fetch() == CONTENT
    with pytest.raises(UnreachableError):
        world.fetch(1, 3)


def status(line: str, **headers: str | None) -> Answer:
    return lambda peer: peer.head(line, Content_Length="0", Content_Range=None, **headers)


def short(peer: Peer) -> None:
    peer.head()
    peer.body(BLOCK_SIZE + 100)


def reset(peer: Peer) -> None:
    peer.head()
    peer.body(BLOCK_SIZE + 100)
    time.sleep(0.2)
    peer.reset()


def rubbish(peer: Peer) -> None:
    peer.sock.sendall(b"\x00\xff" * 40000)


def swelling(peer: Peer) -> None:
    """A head without end."""
    peer.sock.sendall(b"HTTP/1.1 206 OK\r\n")
    for number in range(2000):
        peer.sock.sendall(f"X-{number}: {'y' * 60}\r\n".encode())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status("301 Moved Permanently", Location="https://127.0.0.1:1/"), "redirected"),
        (status("302 Found", Location="http://127.0.0.1:1/"), "redirected"),
        (status("500 Oops"), "https_error"),
        (status("503 Busy"), "https_error"),
        (status("204 No Content"), "https_error"),
        (short, "short_body"),
        (reset, "https_broken short_body"),
        (rubbish, "https_broken"),
        (swelling, "https_broken"),
        (lambda peer: peer.sock.close(), "https_broken"),
        (lambda peer: peer.head(ETag='"another"'), "etag_changed"),
        (lambda peer: peer.head(Content_Range=f"bytes 1-5/{SIZE}"), "bad_range"),
        (lambda peer: peer.head(Content_Range=None), "bad_range"),
        (lambda peer: peer.head(Content_Length="7"), "bad_range"),
        (lambda peer: peer.head(Content_Length=None), "bad_range"),
        (lambda peer: peer.head(Content_Length=None, Transfer_Encoding="chunked"), "bad_range"),
        (lambda peer: peer.head(Content_Encoding="gzip"), "bad_range"),
    ],
)
def test_what_is_wrong_has_a_name_and_can_be_tried_again(
    world: World, answer: Answer, reason: str
) -> None:
    world.server(answer)
    with pytest.raises(UnreachableError) as found:
        world.fetch()
    assert found.value.reason in reason.split()


@pytest.mark.parametrize("line", ["404 Not Found", "416 Range Not Satisfiable"])
def test_a_blob_that_is_not_there(world: World, line: str) -> None:
    world.server(status(line))
    with pytest.raises(IntegrityError) as found:
        world.fetch()
    assert found.value.reason == "blob_missing"


def test_what_came_before_a_connection_broke_is_given(world: World) -> None:
    world.server(reset)
    client = Https(world.links, lambda: world.trusting)
    pacer = Pacer(Limits(0.0, 3600.0, 3600.0), Cap(None))
    blocks = client.blocks(SHA256, SIZE, 0, COUNT, pacer)
    assert next(blocks) == CONTENT[:BLOCK_SIZE]
    with pytest.raises(UnreachableError):
        next(blocks)


def test_a_link_that_is_over_is_renewed_once(world: World) -> None:
    asked: list[int] = []
    new = world.server(good)
    world.server(status("403 Forbidden"))

    def ask() -> None:
        asked.append(1)
        threading.Timer(0.1, world.offer, [new]).start()

    links, old = Links(ask), world.links.current
    assert old is not None
    links.take(f"https://127.0.0.1:{old.port}/blobs/{{sha256}}")
    world.links = links
    assert world.fetch() == CONTENT
    assert asked == [1]
    stale = world.server(status("410 Gone"))
    world.links = Links(lambda: world.links.take(f"https://127.0.0.1:{stale.port}/{{sha256}}"))
    world.offer(stale)
    with pytest.raises(UnreachableError) as found:
        world.fetch()
    assert found.value.reason == "link_expired"
    assert len(stale.paths) == 2


def test_no_link_is_a_reason(world: World) -> None:
    with pytest.raises(UnreachableError) as found:
        world.fetch()
    assert found.value.reason == "no_link"


def test_a_server_that_is_not_the_fleets_gets_no_request(tmp_path: Path, world: World) -> None:
    (tmp_path / "thief").mkdir()
    thief = World(tmp_path / "thief")
    server = Server(thief.serving, good)
    world.servers.append(server)
    world.offer(server)
    with pytest.raises(UnreachableError) as found:
        world.fetch()
    assert found.value.reason == "wrong_ca"
    assert server.paths == []


def test_nobody_listens(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    world.links.take(f"https://127.0.0.1:{port}/{{sha256}}")
    with pytest.raises(UnreachableError) as found:
        world.fetch()
    assert found.value.reason == "https_broken"


def drip(peer: Peer) -> None:
    peer.head()
    with contextlib.suppress(OSError):
        for byte in CONTENT[:400]:
            peer.sock.sendall(bytes([byte]))
            time.sleep(0.02)


def silence(peer: Peer) -> None:
    peer.head()
    peer.body(70_000)
    with contextlib.suppress(OSError):
        peer.sock.recv(1)


def test_a_drip_is_too_slow_and_a_black_hole_is_a_stall(world: World) -> None:
    world.server(drip)
    with pytest.raises(UnreachableError) as found:
        world.fetch(limits=Limits(min_rate=1e6, slow_s=0.5, stall_s=5.0))
    assert found.value.reason == "too_slow"
    world.server(silence)
    with pytest.raises(UnreachableError) as found:
        world.fetch(limits=Limits(min_rate=0.0, slow_s=60.0, stall_s=0.5))
    assert found.value.reason == "stalled"


def test_a_head_that_drips_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 206 OK\r\n" + b"X: y\r\n" * 90:
                peer.sock.sendall(bytes([byte]))
                time.sleep(0.02)

    monkeypatch.setattr(https, "HEAD_S", 0.4)
    world.server(head)
    with pytest.raises(UnreachableError) as found:
        world.fetch()
    assert found.value.reason in {"https_broken", "bad_range"}


def test_waiting_for_a_black_hole_can_be_cancelled(world: World) -> None:
    world.server(silence)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(EdgepackError) as found:
        world.fetch(cancelled=stop.is_set)
    assert found.value.reason == "cancelled"


@given(st.text(max_size=80) | st.from_regex(r"https?://[\x00-\x7f]{0,40}\{sha256\}.{0,20}"))
def test_any_text_is_a_link_or_refused(text: str) -> None:
    with contextlib.suppress(IntegrityError):
        link = read_link(text)
        target = link.target("0" * 64)
        assert target.startswith("/")
        assert "0" * 64 in target
        assert set(target) <= set(map(chr, range(0x21, 0x7F)))
        assert link.host
        assert 0 < link.port < 65536


def test_links_that_lead_astray_are_refused() -> None:
    assert read_link("https://[::1]:8443/blobs/{sha256}?a=b").host == "::1"
    for text in (
        "http://fleet/{sha256}",
        "https://user:word@fleet/{sha256}",
        "https://fleet/{sha256}/{sha256}",
        "https://fleet/blobs",
        "https://fleet{sha256}",
        "https://fleet/{sha256}#x",
        "https://fleet:99999/{sha256}",
        "https://fleet/{sha256} HTTP/1.1\r\nX: y",
        "https://fleet/" + "x" * 3000 + "{sha256}",
    ):
        with pytest.raises(IntegrityError):
            read_link(text)
