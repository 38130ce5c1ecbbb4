"""Changes as they happen, over a real connection: in order, each once, also after a break."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import delete

from edgepack_fleet.adapters.tables import ChangeRow, DeviceRow, GroupRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.service import Service
from edgepack_fleet.web import stream
from edgepack_fleet.web.app import main_app
from fleet_rig import enrol, publisher, serving, wait
from rest_rig import LISTENER, auth, problem

STREAM = "/api/v1/events/stream"


@pytest.fixture
def url(fleet: Service) -> Iterator[str]:
    try:
        with serving(main_app(fleet, LISTENER)) as port:
            yield f"http://127.0.0.1:{port}"
            fleet.feed.close()
    finally:
        fleet.feed.close()


class Heard:
    """A stream that a test listens to."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.lines = answer.iter_lines()

    def next(self) -> dict[str, Any]:
        """Return the next event: its fields, and its data."""
        fields: dict[str, Any] = {}
        for line in self.lines:
            if not line and fields:
                return fields
            name, _, value = line.partition(": ")
            if name:
                fields[name] = json.loads(value) if name == "data" else value
        pytest.fail("the stream has ended")

    def types(self, count: int) -> list[str]:
        return [self.next()["event"] for _ in range(count)]


@contextmanager
def hearing(
    fleet: Service, url: str, after: int | None = None, headers: Any = None, **query: Any
) -> Iterator[Heard]:
    """Yield a stream that has begun: what happens from here on is told."""
    more = {} if after is None else {"Last-Event-ID": str(after)}
    headers = headers or auth(fleet, "viewer")
    with httpx.stream(
        "GET", url + STREAM, params=query, headers=headers | more, timeout=30
    ) as answer:
        if answer.status_code == 200:
            assert answer.headers["content-type"].startswith("text/event-stream")
        heard = Heard(answer)
        if answer.status_code == 200 and after is None:
            assert next(heard.lines) == ": here"
        yield heard


def switch(fleet: Service, device: str, **facts: Any) -> None:
    with fleet.database.write() as session:
        row = session.get_one(DeviceRow, device)
        for name, value in facts.items():
            setattr(row, name, value)


def test_what_happens_is_told_as_cloud_events(fleet: Service, url: str) -> None:
    publisher(fleet.settings.data).release()
    with hearing(fleet, url) as heard:
        enrol(fleet, "cam")
        enrolled = heard.next()
        switch(fleet, "cam", online=True)
        switch(fleet, "cam", online=True, seen=5.0)
        switch(fleet, "cam", online=False, bundle="digits@1.0.0")
        rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
        fleet.rollouts.pause(rollout)
        assert heard.types(5) == [
            "edgepack.device.online",
            "edgepack.device.offline",
            "edgepack.device.bundle",
            "edgepack.rollout.created",
            "edgepack.rollout.state",
        ]
    document = enrolled["data"]
    assert enrolled["id"] == document["id"]
    assert enrolled["event"] == document["type"] == "edgepack.device.enrolled"
    assert (document["specversion"], document["subject"]) == ("1.0", "devices/cam")
    assert document["source"] == fleet.source
    assert document["time"].endswith("Z")
    assert document["data"] == {"id": "cam", "group": "lab", "online": False, "bundle": None}


def test_what_is_rolled_back_is_not_told(fleet: Service, url: str) -> None:
    def half() -> None:
        with fleet.database.write() as session:
            session.get_one(DeviceRow, "cam").bundle = "never@1"
            session.flush()
            raise ZeroDivisionError

    enrol(fleet, "cam")
    with hearing(fleet, url) as heard:
        with pytest.raises(ZeroDivisionError):
            half()
        switch(fleet, "cam", bundle="real@1")
        assert heard.next()["data"]["data"]["bundle"] == "real@1"


def test_who_comes_back_hears_what_it_missed(fleet: Service, url: str) -> None:
    enrol(fleet, "cam")
    with hearing(fleet, url) as heard:
        switch(fleet, "cam", bundle="m@0")
        last = int(heard.next()["id"])
    # More than a page, so that it must be read on.
    for number in range(1, 2 * stream.PAGE + 5):
        switch(fleet, "cam", bundle=f"m@{number}")
    with hearing(fleet, url, after=last) as heard:
        found = [heard.next() for _ in range(2 * stream.PAGE + 4)]
    assert [int(e["id"]) for e in found] == list(range(last + 1, last + 2 * stream.PAGE + 5))
    assert [e["data"]["data"]["bundle"] for e in found][-1] == f"m@{2 * stream.PAGE + 4}"


def test_who_was_away_too_long_is_told(fleet: Service, url: str) -> None:
    enrol(fleet, "cam")
    for number in range(3):
        switch(fleet, "cam", bundle=f"m@{number}")
    with fleet.database.write() as session:
        session.execute(delete(ChangeRow).where(ChangeRow.id <= 2))
    for after in (0, 999):
        with hearing(fleet, url, after=after) as heard:
            assert heard.next()["event"] == "edgepack.stream.gap"
    with hearing(fleet, url, after=2) as heard:
        assert heard.next()["id"] == "3"


def test_only_what_is_asked_for_is_told(fleet: Service, url: str) -> None:
    enrol(fleet, "cam")
    with hearing(fleet, url, type=["edgepack.device.bundle", "edgepack.device.revoked"]) as heard:
        switch(fleet, "cam", online=True)
        switch(fleet, "cam", bundle="m@1")
        switch(fleet, "cam", online=False)
        switch(fleet, "cam", revoked=1.0)
        assert heard.types(2) == ["edgepack.device.bundle", "edgepack.device.revoked"]


def test_a_stream_ends_with_its_token_and_with_the_fleet(
    fleet: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "QUIET_S", 0.05)
    row, token = fleet.access.create("tv", "viewer", None)
    others = len(fleet.feed._listeners)
    with (
        hearing(fleet, url, headers={"Authorization": f"Bearer {token}"}) as heard,
        hearing(fleet, url) as other,
    ):
        assert next(line for line in heard.lines if line) == ": alive"
        fleet.access.revoke(row.id)
        assert set(heard.lines) <= {": alive", ""}, "it has an end"
        assert next(line for line in other.lines if line) == ": alive"
        fleet.feed.close()
        assert set(other.lines) <= {": alive", ""}
    wait("the streams to be forgotten", lambda: len(fleet.feed._listeners) == others)


def test_what_cannot_be_listened_to(
    fleet: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with httpx.Client(base_url=url, headers=auth(fleet)) as client:
        for last in ("x", "-1", "9" * 16, ""):
            assert problem(client.get(STREAM, headers={"Last-Event-ID": last}), 400)
        assert problem(client.get(STREAM, params={"kind": "x"}), 400)
        monkeypatch.setattr(stream, "MOST", 1)
        with hearing(fleet, url):
            refused = client.get(STREAM)
            assert problem(refused, 429)
            assert refused.headers["retry-after"] == "60"
        assert problem(httpx.get(url + STREAM), 401)


def test_old_changes_go(fleet: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack_fleet.adapters.feed.KEPT", 3)
    enrol(fleet, "cam")
    for number in range(5):
        switch(fleet, "cam", bundle=f"m@{number}")
    newest = fleet.feed.ends()[1]
    fleet.feed.trim()
    assert fleet.feed.ends() == (newest - 2, newest)
    assert [row.data["bundle"] for row in fleet.feed.after(0, 10)] == ["m@2", "m@3", "m@4"]


def test_a_number_is_never_given_twice(fleet: Service) -> None:
    enrol(fleet, "cam")
    newest = fleet.feed.ends()[1]
    with fleet.database.write() as session:
        session.execute(delete(ChangeRow))
    switch(fleet, "cam", bundle="m@1")
    assert fleet.feed.ends() == (newest + 1, newest + 1)


def test_a_group_is_no_change_that_is_told(fleet: Service) -> None:
    with fleet.database.write() as session:
        session.add(GroupRow(id="quiet", created=0.0))
    assert fleet.feed.ends() == (0, 0)
