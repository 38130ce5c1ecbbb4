"""One HTTP connection over a real socket: what is asked well, badly, slowly, in pieces, or not."""

import contextlib
import os
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.counting import FAULTS
from edgepack_agent.runner import connection as connection_module
from edgepack_agent.runner import http1
from edgepack_agent.runner.connection import DEADLINE_S, Call, Connection, Reply, Route, late
from edgepack_agent.runner.protocol import RequestError

LIMIT = 200_000
LARGE = 2**23


class Echo:
    """An app that answers with what it was sent."""

    limit = LIMIT

    def __init__(self) -> None:
        self.done: list[str] = []
        self.refused: list[Exception] = []

    def admit(self, call: Call) -> Route:
        if call.path == "/secret":
            raise RequestError(401, "no")
        slow = {"/slow": self._slow, "/fails": self._slow}
        return Route((slow | {"/large": self._large}).get(call.path, self._answer), {})

    def _answer(self, call: Call) -> Reply:
        body = f"{call.method} {call.path} {len(call.body)} ".encode() + bytes(call.body)
        return Reply(200, {}, body, lambda: self._count(call.path))

    def _count(self, path: str) -> None:
        self.done.append(path)
        if path == "/uncountable":
            raise RequestError(500, "it cannot be counted")

    def _large(self, _call: Call) -> Reply:
        return Reply(200, {}, bytes(LARGE))

    def _slow(self, call: Call) -> Reply:
        call.wait_at_most(0.01)
        time.sleep(0.3)
        if call.path == "/fails":
            raise RequestError(500, "the runtime failed")
        return self._answer(call)

    def refuse(self, error: Exception) -> Reply:
        self.refused.append(error)
        assert isinstance(error, RequestError), error
        return Reply(error.status, {}, str(error).encode())

    def count(self, _reply: Reply) -> dict[str, str]:
        return {}


@contextlib.contextmanager
def connected(
    closing: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[socket.socket, Connection, int, Echo]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    leaving, app = os.eventfd(0), Echo()
    connection = Connection(theirs, app, leaving, closing)
    thread = threading.Thread(target=connection.serve)
    thread.start()
    try:
        with ours:
            yield ours, connection, leaving, app
    finally:
        thread.join(20)
        os.close(leaving)
        assert not thread.is_alive()


def until_closed(sock: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def answer_to(*pieces: bytes) -> bytes:
    """Return everything that is answered when PIECES are sent one after the other."""
    with connected() as (ours, _, _, _):
        for piece in pieces:
            ours.sendall(piece)
            time.sleep(0.01 if len(pieces) > 1 else 0)
        ours.shutdown(socket.SHUT_WR)
        return until_closed(ours)


def test_a_request_is_answered_however_it_is_cut() -> None:
    whole = b"POST /a%20b?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    expected = b"HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\nPOST /a b 5 hello"
    expected = expected.replace(b"19", str(len(b"POST /a b 5 hello")).encode())
    assert answer_to(whole) == expected
    assert answer_to(*(whole[i : i + 1] for i in range(len(whole)))) == expected


def test_requests_that_come_at_once_are_answered_in_order() -> None:
    one = b"POST /1 HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"
    two = b"GET /2 HTTP/1.1\r\n\r\n"
    said = answer_to(one + two + one)
    assert said.count(b"HTTP/1.1 200 OK") == 3
    assert said.index(b"POST /1 2 ab") < said.index(b"GET /2 0 ") < said.rindex(b"POST /1 2 ab")


def test_a_body_in_chunks_is_read_and_ends_the_connection() -> None:
    head = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = answer_to(head + b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
    assert b"POST /c 5 abcde" in said
    assert b"connection: close" in said


@pytest.mark.parametrize("more", ["", "Connection: close", "Connection: upgrade\r\nUpgrade: h2c"])
@pytest.mark.parametrize("then", ["POST /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nxy", "\0\r\n"])
def test_a_body_in_chunks_ends_where_it_says(more: str, then: str) -> None:
    head = f"POST /c HTTP/1.1\r\n{more or 'A: b'}\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = answer_to(f"{head}3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n{then}".encode())
    assert said.startswith(b"HTTP/1.1 200 OK")
    assert said.endswith(b"POST /c 3 abc")


def test_trailers_are_not_kept() -> None:
    head = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
    with connected() as (ours, _, _, _):
        ours.sendall(head)
        tracemalloc.start()
        trailer = b"t" * 60_000
        for number in range(200):
            ours.sendall(b"T%d: %s\r\n" % (number, trailer))
        ours.sendall(b"\r\n")
        assert until_closed(ours).endswith(b"POST /c 3 abc")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 4e6


def test_a_head_alone_is_asked_for() -> None:
    said = answer_to(b"HEAD /h HTTP/1.1\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 OK")
    assert said.endswith(b"\r\n\r\n")
    assert b"content-length: 0" not in said


def test_the_same_head_again_is_another_request() -> None:
    post = b"POST /p HTTP/1.1\r\nContent-Length: 3\r\n\r\n"
    last = post.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    head = post.replace(b"POST", b"HEAD")
    for _ in range(2):
        said = answer_to(post + b"abc" + head + b"xyz" + post + b"def" + last + b"ghi" + post)
        one, two, three, four = said.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert one.endswith(b"POST /p 3 abc")
        assert two.endswith(b"\r\n\r\n")
        assert three.endswith(b"POST /p 3 def")
        assert four.endswith(b"POST /p 3 ghi")
        assert (b"connection: close" in three, b"connection: close" in four) == (False, True)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
@pytest.mark.parametrize("rest", [b"1.1\r\nConnection: close", b"1.0"])
def test_who_wants_one_answer_is_hung_up_on(method: bytes, rest: bytes) -> None:
    with connected() as (ours, _, _, _):
        ours.sendall(method + b" /one HTTP/" + rest + b"\r\n\r\n")
        said = until_closed(ours)  # in less than the twenty seconds of `ours`
    assert said.startswith(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")


def test_heads_are_kept_if_they_are_short_and_no_strangers() -> None:
    known = http1.known
    known.cache_clear()
    short, long = b"GET /s HTTP/1.1\r\n\r\n", b"GET /l HTTP/1.1\r\nX: %s\r\n\r\n" % (b"x" * 4000)
    for _ in range(2):
        assert answer_to(short, long).count(b"200 OK") == 2
    assert (known.cache_info().currsize, known.cache_info().hits) == (1, 1)
    asked = b"GET /t HTTP/1.1\r\nAuthorization: Bearer x\r\nConnection: close\r\n\r\n"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        ours.sendall(asked)
        theirs, _ = server.accept()
        Connection(theirs, Echo(), server.fileno(), lambda: False).serve()
        assert b"200 OK" in until_closed(ours)
    assert known.cache_info().currsize == 1


def test_a_head_that_is_too_long_is_refused_though_it_came_at_once() -> None:
    longest = b"GET / HTTP/1.1\r\nX: %s\r\n\r\n"
    room = 16 * 1024 - len(longest % b"")
    assert b" 200 " in answer_to(longest % (b"x" * room))
    assert b" 431 " in answer_to(longest % (b"x" * (room + 1)))


def test_who_waits_for_leave_to_send_gets_it() -> None:
    with connected() as (ours, _, _, _):
        ours.sendall(
            b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\n"
            b"Content-Length: 3\r\n\r\n"
        )
        assert ours.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        ours.sendall(b"abc")
        assert until_closed(ours).endswith(b"POST / 3 abc")


@pytest.mark.parametrize("size", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_who_hangs_up_in_a_body_is_no_failure_of_ours(size: bytes) -> None:
    with connected() as (ours, _, _, app):
        ours.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n" + size + b"\r\n\r\n")
        assert select.select([ours], [], [], 20)[0]
        ours.close()  # with something unread, which is a reset
    assert app.refused == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 200001\r\n\r\n" + b"x" * 200_001, 413),
        (b"GET /" + b"x" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 40_000, 431),
    ],
)
def test_what_is_no_request_is_told_so_and_hung_up_on(sent: bytes, status: int) -> None:
    said = answer_to(sent)
    assert said.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in said
    assert said.count(b"HTTP/1.1 ") == 1


def test_a_body_that_is_too_large_is_not_asked_for() -> None:
    size = b"Content-Length: %d" % (LIMIT + 1)
    said = answer_to(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n" + size + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 413 ")


def test_a_short_refused_body_is_skipped_a_long_one_ends_the_connection() -> None:
    short = b"POST /secret HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd"
    said = answer_to(short + b"GET /next HTTP/1.1\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"GET /next 0" in said
    size = LIMIT - 1
    long = b"POST /secret HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    said = answer_to(long)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert said.endswith(b"no")


def test_a_body_that_stops_coming_is_given_up_and_what_follows_is_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "DEADLINE_S", 1.0)
    with connected() as (ours, _, _, _):
        ours.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
        said = ours.recv(4096)
        with contextlib.suppress(OSError):
            ours.sendall(b"defghi\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
        said += until_closed(ours)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in said
    assert said.count(b"HTTP/1.1 ") == 1


def test_who_is_refused_cannot_stay_by_not_sending_the_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "_LINGER_S", 0.1)
    with connected() as (ours, _, _, _):
        ours.sendall(b"POST /secret HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
        said = until_closed(ours)
    assert said.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in said


@pytest.mark.parametrize("path", ["/slow", "/fails"])
def test_an_answer_that_is_late_is_refused_once(path: str) -> None:
    with connected() as (ours, connection, _, app):
        ours.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        deadline = time.monotonic() + 20
        said = b""
        ours.setblocking(False)
        while not said and time.monotonic() < deadline:
            connection.expire(time.monotonic())
            time.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                said = ours.recv(4096)
        ours.settimeout(20)
        said += until_closed(ours)
        assert said.startswith(b"HTTP/1.1 504 Gateway")
        assert b"no answer within 0.01 s" in said
        assert said.count(b"HTTP/1.1 ") == 1
    assert app.done == []
    assert len(app.refused) == 1, "each is counted"


def test_an_impatient_client_is_not_held_against_the_model() -> None:
    assert late(DEADLINE_S).reason in FAULTS
    assert late(DEADLINE_S / 2).reason not in FAULTS


def test_who_takes_an_answer_byte_by_byte_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (ours, connection, _, _):
        monkeypatch.setattr(connection_module, "DEADLINE_S", 0.1)
        ours.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        said = 0
        with contextlib.suppress(ConnectionError):
            while (piece := len(ours.recv(4096))) and said < LARGE:
                said += piece
                time.sleep(0.01)
                connection.expire(time.monotonic())
    assert 0 < said < LARGE


def test_an_answer_that_cannot_be_counted_ends_no_connection() -> None:
    with connected() as (ours, _, _, app):
        ours.sendall(b"GET /uncountable HTTP/1.1\r\n\r\nGET /next HTTP/1.1\r\n\r\n")
        ours.shutdown(socket.SHUT_WR)
        said = until_closed(ours)
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert (app.done, len(app.refused)) == (["/uncountable", "/next"], 1)


def test_an_idle_connection_leaves_when_it_is_told() -> None:
    with connected() as (ours, _, leaving, app):
        ours.sendall(b"GET /1 HTTP/1.1\r\n\r\n")
        assert ours.recv(4096).startswith(b"HTTP/1.1 200")
        os.eventfd_write(leaving, 1)
        assert ours.recv(1) == b""
        assert app.done == ["/1"]


def test_a_closing_server_says_so_in_its_answer() -> None:
    with connected(closing=lambda: True) as (ours, _, _, _):
        ours.sendall(b"GET /1 HTTP/1.1\r\n\r\n")
        assert b"connection: close" in until_closed(ours)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([
                b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.0\r\n", b"\r\n", b"\r\n\r\n",
                b"Content-Length: 3\r\n", b"Content-Length: 4\r\n", b"Expect: 100-continue\r\n",
                b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"0\r\n\r\n",
                b"Upgrade: h2c\r\nConnection: upgrade\r\n",
                b"inference-header-content-length: 9\r\n",
            ]),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    said = answer_to(b"".join(pieces))
    assert said == b"" or said.startswith(b"HTTP/1.1 ")
