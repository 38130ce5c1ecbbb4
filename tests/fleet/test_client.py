"""The client of the command line against a server that misbehaves as networks do."""

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.cli import root, run_command
from edgepack.errors import EdgepackError, UnreachableError, UsageError
from edgepack_fleet.cli.client import TRIES, Client
from edgepack_fleet.core.model import FAILURES, TERMINAL
from edgepack_fleet.core.outcome import outcome

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


# -- waiting for a rollout


def standing(state: str, **devices: str) -> Reply:
    failures = [{"reason": "exam", "devices": [d]} for d, s in devices.items() if s == "FAILED"]
    members = [{"id": name, "status": status} for name, status in devices.items()]
    facts = {"id": "r1", "release": "m@1", "group": "g", "state": state, "reason": "Because."}
    return ok(facts | {"devices": members, "failures": failures})


def waited(fleet: Fleet, *words: str) -> tuple[int, dict[str, Any] | None]:
    where = ("--url", f"http://127.0.0.1:{fleet.port}", "--token", "t", "--json")
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            run_command(root, ["fleet", "rollouts", "wait", "r1", *where, *words])
        except SystemExit as leave:
            code = int(leave.code or 0)
    return code, json.loads(out.getvalue()) if out.getvalue() else None


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (standing("completed", a="SUCCEEDED", b="QUEUED"), 0),
        (standing("completed", a="SUCCEEDED", b="FAILED"), 8),
        (standing("paused", a="SUCCEEDED"), 4),
        (standing("reverted", a="SUCCEEDED"), 4),
        (standing("cancelled"), 4),
    ],
)
def test_the_exit_code_says_how_a_rollout_ended(fleet: Fleet, end: Reply, code: int) -> None:
    fleet.replies = [standing("draft"), standing("running", a="IN_PROGRESS"), end]
    found, document = waited(fleet)
    assert found == code
    assert document is not None
    assert (document["schema"], document["state"]) == ("edgepack.rollout/v1", end[2]["state"])
    assert not fleet.replies


def test_a_fleet_that_is_away_for_a_while_is_waited_for(fleet: Fleet) -> None:
    broken: list[Reply | None] = [None] * TRIES
    fleet.replies = [standing("running"), *broken, standing("completed", a="SUCCEEDED")]
    assert waited(fleet)[0] == 0
    fleet.replies = [*broken]
    assert waited(fleet) == (7, None), "never heard of: said at once"


def test_when_the_time_is_over_what_is_done_decides(fleet: Fleet) -> None:
    for status, code in (("IN_PROGRESS", 7), ("SUCCEEDED", 8)):
        fleet.replies = [standing("running", a=status)]
        found, document = waited(fleet, "--timeout", "0")
        assert found == code
        assert document is not None
        assert document["state"] == "running"


@given(
    st.sampled_from(["completed", "paused", "running"]), st.lists(st.sampled_from(sorted(TERMINAL)))
)
def test_only_a_completed_rollout_without_failures_is_done(state: str, statuses: list[str]) -> None:
    done = state == "completed" and not FAILURES & set(statuses)
    assert (outcome(state, statuses) == "done") is done
