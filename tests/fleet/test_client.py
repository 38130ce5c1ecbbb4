"""The client of the command line against a server that misbehaves as networks do."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from edgepack.errors import EdgepackError, UnreachableError, UsageError
from edgepack_fleet.cli.client import Client

Reply = tuple[int, dict[str, str], Any]


class Fleet:
    """What a test says it answers; None: it breaks the connection off."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.replies: list[Reply | None] = []
        self.port = 0

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", "t", None)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    found = Fleet()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length)
            headers = {k.lower(): v for k, v in self.headers.items()}
            found.asked.append((self.command, self.path, headers))
            reply = found.replies.pop(0)
            if reply is None:
                self.close_connection = True
                return
            status, more, document = reply
            body = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | more).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_facts: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def ok(document: Any, status: int = 200) -> Reply:
    return status, {}, document


def test_a_list_is_read_to_its_end(fleet: Fleet) -> None:
    fleet.replies = [
        ok({"items": [{"id": "a"}], "next": "c=1&x"}),
        ok({"items": [], "next": "c2"}),
        ok({"items": [{"id": "b"}], "next": None}),
    ]
    found = fleet.client.list("devices", group="lab", online=False, release=None)
    assert found == {"devices": [{"id": "a"}, {"id": "b"}]}
    paths = [path for _, path, _ in fleet.asked]
    assert all("group=lab" in p and "online=false" in p and "release" not in p for p in paths)
    assert ["cursor" in p for p in paths] == [False, True, True]
    assert "cursor=c%3D1%26x" in paths[1]


def test_a_post_that_breaks_off_is_sent_again_as_the_same(fleet: Fleet) -> None:
    fleet.replies = [None, ok({"id": "lab"}, 201), ok({"id": "lab"}, 201)]
    assert fleet.client.post("groups", body={"id": "lab"}) == {"id": "lab"}
    fleet.client.post("groups", body={"id": "lab"})
    first, again, other = (headers["idempotency-key"] for _, _, headers in fleet.asked)
    assert first == again
    assert other != first


def test_who_is_told_to_wait_waits_and_gives_up_in_the_end(fleet: Fleet) -> None:
    busy: Reply = (429, {"Retry-After": "0"}, {"detail": "too many", "reason": "too_many"})
    fleet.replies = [busy, ok({"role": "viewer"})]
    assert fleet.client.get("session") == {"role": "viewer"}
    fleet.replies = [busy] * 3
    with pytest.raises(EdgepackError, match="too many") as caught:
        fleet.client.get("session")
    assert caught.value.reason == "too_many"


def test_a_fleet_that_always_breaks_off_does_not_answer(fleet: Fleet) -> None:
    fleet.replies = [None] * 3
    with pytest.raises(UnreachableError):
        fleet.client.get("session")
    assert fleet.replies == []


def test_deleting_has_no_answer_but_a_refusal_has(fleet: Fleet) -> None:
    fleet.replies = [
        (204, {}, None),
        ok({"detail": "no token 'x'", "code": 2, "reason": "unknown_token", "fix": "look"}, 404),
    ]
    fleet.client.delete("access-tokens", "t-1")
    with pytest.raises(UsageError, match="no token") as caught:
        fleet.client.delete("access-tokens", "x")
    assert (caught.value.reason, caught.value.fix) == ("unknown_token", "look")
