"""What happened to a device, in one order and in pages; where it stands, in a sentence."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.device_tables import ConnectionRow
from edgepack_fleet.adapters.tables import AuditRow, DeviceRow, EventRow, JobRow, RolloutRow
from edgepack_fleet.core.model import Policy
from edgepack_fleet.core.timeline import Standing, happened, job_ended
from edgepack_fleet.service import Service
from edgepack_fleet.timeline import timeline_of
from fleet_rig import enrol, fleet_database, publisher
from rest_rig import Now, auth, problem

API = "/api/v1"
SOURCES = ("audit", "connection", "event", "job")
times = st.integers(0, 3).map(float)


def row_of(number: int, source: str, time: float) -> Any:
    match source:
        case "audit":
            return AuditRow(id=number, time=time, who="t", name="Alice", role="operator",
                            address="", action="describe_device", status=200, reason="",
                            path="/api/v1/devices/cam/describe", detail={})  # fmt: skip
        case "connection":
            return ConnectionRow(device_id="cam", time=time, online=bool(number % 2))
        case "event":
            return EventRow(device_id="cam", boot=f"b{number % 2}", seq=number, received=time,
                            type="activated", body={"bundle": "m@1"})  # fmt: skip
    return JobRow(id=f"j{number}", device_id="cam", rollout_id="r", wave=0, release="m@1",
                  target="t", status="SUCCEEDED", detail={}, probation_s=1, timeout_s=1,
                  created=time, started=time, updated=time, attempt=number)  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with fleet_database(tmp_path_factory.mktemp("db"), "cam", "other") as database:
        with database.write() as session:
            session.add(RolloutRow(id="r", number=1, group_id="lab", release="m@1", variants=[],
                                   waves="100%", policy={}, forgiven=[], state="running",
                                   created=0.0, updated=0.0))  # fmt: skip
        yield database


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.sampled_from(SOURCES), times), max_size=12),
       limit=st.integers(1, 5), down=st.booleans())  # fmt: skip
def test_every_entry_is_told_once_whatever_the_page(
    shelf: Database, rows: list[tuple[str, float]], limit: int, down: bool
) -> None:
    fill(shelf, rows)
    with shelf.read() as session:
        device = session.get_one(DeviceRow, "cam")
        whole = timeline_of(session, device, None, 1000, down=down)
        assert len(whole) == sum(3 if source == "job" else 1 for source, _ in rows)
        assert sorted(whole, key=lambda e: e.key, reverse=down) == whole
        found, after = [], None
        while page := timeline_of(session, device, after, limit, down=down):
            found += page
            after = page[-1].key
    assert found == whole


def fill(database: Database, rows: list[tuple[str, float]]) -> None:
    with database.write() as session:
        for table in (AuditRow, ConnectionRow, EventRow, JobRow):
            session.execute(delete(table))
        session.add_all([row_of(n, *facts) for n, facts in enumerate(rows, 1)])
        session.add(ConnectionRow(device_id="other", time=1.0, online=True))


def entries(app: httpx.Client, fleet: Service, device: str, **query: Any) -> list[dict[str, Any]]:
    answer = app.get(f"{API}/devices/{device}/timeline", params=query, headers=auth(fleet))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def test_a_life_is_told(app: httpx.Client, fleet: Service, now: Now) -> None:
    publisher(fleet.settings.data).release()
    enrol(fleet, "cam")
    now.value += 10
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").online = True
    now.value += 10
    tags = {"tags": {"site": "hall"}}
    app.post(f"{API}/devices/cam/describe", json=tags, headers=auth(fleet))
    now.value += 10
    rollout = fleet.rollouts.create("digits@1.0.0", "lab", "100%", Policy())
    fleet.rollouts.tick(now.value)
    with fleet.database.write() as session:
        (job,) = session.query(JobRow).all()
        job.status, job.started, job.updated = "FAILED", now.value + 1, now.value + 2
        job.reason = "acceptance_below_limit"
        body = {"bundle": "digits@1.0.0", "reason": "acceptance_below_limit"}
        session.add(EventRow(device_id="cam", boot="b", seq=0, received=now.value + 3,
                             type="rejected", body=body))  # fmt: skip
    told = [e["sentence"] for e in entries(app, fleet, "cam", sort="time")]
    assert told == [
        "It connected.",
        "bootstrap described it.",
        f"It was asked to install digits@1.0.0 ({rollout}, wave 1).",
        "It began with digits@1.0.0.",
        "The update to digits@1.0.0 failed: acceptance_below_limit.",
        "It did not take digits@1.0.0: acceptance_below_limit.",
    ]
    assert [e["sentence"] for e in entries(app, fleet, "cam")] == told[::-1]
    kinds = [e["kind"] for e in entries(app, fleet, "cam", kind="job", limit=2)]
    assert kinds == ["job", "job"]
    shown = app.get(f"{API}/devices/cam", headers=auth(fleet)).json()
    assert shown["standing"] == (
        "It shall run digits@1.0.0 and runs no model: the update failed (acceptance_below_limit)."
    )
    url = f"{API}/devices/cam/timeline"
    wrong = app.get(url, params={"cursor": "x"}, headers=auth(fleet))
    assert problem(wrong, 400)["reason"] == "bad_cursor"
    nobody = app.get(f"{API}/devices/nobody/timeline", headers=auth(fleet))
    assert problem(nobody, 404)["reason"] == "unknown_device"


def test_a_device_of_the_same_name_does_not_inherit_what_people_did(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    with fleet.database.write() as session:
        session.add(AuditRow(time=now.value - 5, who="t", name="Alice", role="operator",
                             address="", action="describe_device", status=200, reason="",
                             path="/api/v1/devices/cam/describe", detail={}))  # fmt: skip
    enrol(fleet, "cam")
    assert entries(app, fleet, "cam") == []


def test_connections_are_forgotten_after_a_while(
    app: httpx.Client, fleet: Service, now: Now
) -> None:
    enrol(fleet, "cam")
    for online in (True, False, True):
        now.value += 1
        with fleet.database.write() as session:
            session.get_one(DeviceRow, "cam").online = online
    assert [e["facts"]["online"] for e in entries(app, fleet, "cam")] == [True, False, True]
    now.value += 91 * 86_400
    fleet.roster.tidy()
    assert entries(app, fleet, "cam") == []


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ((None, None, True, False), "Nothing is wanted of it; it runs no model."),
        ((None, "a@1", True, False), "Nothing is wanted of it; it runs a@1."),
        (("a@1", "a@1", False, False), "It runs a@1, as it shall."),
        (("a@1", "a@1", False, True), "It is revoked."),
        (("b@1", "a@1", True, False), "It shall run b@1 and runs a@1: its turn has not come."),
        (("b@1", None, False, False), "It shall run b@1 and runs no model: it is offline."),
    ],
)
def test_where_a_device_stands(facts: tuple[Any, ...], sentence: str) -> None:
    assert Standing(*facts).sentence() == sentence


def test_where_an_update_stands() -> None:
    job = {"release": "b@1", "status": "IN_PROGRESS", "state": "downloading", "progress": 0.4,
           "reason": ""}  # fmt: skip
    said = Standing("b@1", "a@1", online=True, revoked=False, job=job).sentence()
    assert said == "It shall run b@1 and runs a@1: the update is downloading, 40% done."
    said = Standing("b@1", "a@1", online=True, revoked=False, job=job | {"release": "c@1"})
    assert "its turn has not come" in said.sentence()


facts = st.none() | st.text() | st.dictionaries(st.sampled_from(["by", "release", "x"]), st.text())


@given(st.text() | st.sampled_from(["activated", "revoked", "rejected"]),
       st.dictionaries(st.sampled_from(["bundle", "reason", "detail", "ts"]), facts))  # fmt: skip
def test_whatever_a_device_tells_is_a_sentence(kind: str, body: dict[str, Any]) -> None:
    assert happened(kind, body).endswith(".")


def test_what_was_refused_is_named_and_not_what_runs() -> None:
    body = {"bundle": "m@1", "reason": "acceptance_below_limit", "detail": {"release": "m@2"}}
    assert happened("rejected", body) == "It did not take m@2: acceptance_below_limit."
    assert happened("rolled_back", body) == "It went back to m@1: acceptance_below_limit."


@pytest.mark.parametrize("status", ["CANCELED", "TIMED_OUT", "REJECTED", "FAILED", "SUCCEEDED"])
def test_every_end_of_a_job_has_words(status: str) -> None:
    assert "m@1" in job_ended({"status": status, "release": "m@1", "reason": "x"})
