"""What the fleet asks of a device: who may, what waits, which word counts, and when it is over."""

from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import messages, requests, topics
from edgepack.signed import sign_report
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import DeviceRow, OutboxRow
from edgepack_fleet.asking import KEPT
from edgepack_fleet.core.asking import OPEN, counts
from edgepack_fleet.service import Service
from fleet_rig import Identity, enrol
from rest_rig import Now, auth, problem

API = "/api/v1"


@pytest.fixture
def cam(fleet: Service) -> Identity:
    return enrol(fleet, "cam", signs=True)


def ask(app: httpx.Client, fleet: Service, kind: str = "doctor", **facts: Any) -> dict[str, Any]:
    url = f"{API}/devices/cam/requests"
    made = app.post(url, json={"kind": kind} | facts, headers=auth(fleet))
    assert made.status_code == 201, made.text
    return dict(made.json())


def shown(app: httpx.Client, fleet: Service, request: str) -> dict[str, Any]:
    return dict(app.get(f"{API}/requests/{request}", headers=auth(fleet)).json())


def say(fleet: Service, kind: str, payload: bytes, device: str = "cam") -> dict[str, bytes]:
    answers = fleet.uplink.ingest([Incoming(topics.up(device, kind), payload)])
    return {a.topic.removeprefix(topics.down(device, "")): a.payload for a in answers}


def waiting(fleet: Service, device: str = "cam") -> tuple[requests.Request, ...]:
    told = say(fleet, "req/get", messages.encode(requests.RequestGet(token="t")), device)
    return messages.decode(told["req/get/accepted"], requests.RequestList).requests


def answer(fleet: Service, cam: Identity, request: str, **facts: Any) -> dict[str, bytes]:
    said = requests.Answer(**{"token": "t", "request": request, "status": "SUCCEEDED"} | facts)
    assert cam.report_key
    word = sign_report("cam", "req/answer", messages.encode(said), 1.0, cam.report_key)
    return say(fleet, "req/answer", word)


def test_a_request_waits_for_the_device_and_its_signed_answer_is_shown(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    made = ask(app, fleet, "logs", lines=5, within_s=100)
    assert (made["status"], made["args"], made["result"]) == ("QUEUED", {"lines": 5}, {})
    with fleet.database.read() as session:
        (hint,) = session.query(OutboxRow).all()
    assert hint.topic == topics.down("cam", "req/notify")
    now.value += 40
    (asked,) = waiting(fleet)
    assert (asked.request, asked.kind, asked.args) == (made["id"], "logs", {"lines": 5})
    assert asked.left_s == 60.0
    assert "req/answer/accepted" in answer(fleet, cam, made["id"], status="IN_PROGRESS")
    assert shown(app, fleet, made["id"])["status"] == "IN_PROGRESS"
    assert len(waiting(fleet)) == 1, "a device that was restarted begins it again"
    answer(fleet, cam, made["id"], result={"lines": ["one"]}, took_s=0.5)
    found = shown(app, fleet, made["id"])
    assert (found["status"], found["result"], found["verified"]) == (
        "SUCCEEDED", {"lines": ["one"]}, True,
    )  # fmt: skip
    assert waiting(fleet) == ()
    answer(fleet, cam, made["id"], status="FAILED")
    assert shown(app, fleet, made["id"]) == found, "what has ended stays as it is"


def test_nobody_else_can_answer(app: httpx.Client, fleet: Service, cam: Identity) -> None:
    request = ask(app, fleet)["id"]
    forged = requests.Answer(token="t", request=request, status="SUCCEEDED", result={"a": 1})
    told = say(fleet, "req/answer", messages.encode(forged))
    refusal = messages.decode(told["req/answer/rejected"], messages.Rejected)
    assert (refusal.code, refusal.token) == ("unsigned", "t")
    other = enrol(fleet, "other", signs=True)
    assert other.report_key
    word = sign_report("other", "req/answer", messages.encode(forged), 1.0, other.report_key)
    say(fleet, "req/answer", word, "other")
    assert shown(app, fleet, request)["status"] == "QUEUED"
    assert waiting(fleet, "other") == ()


def test_nobody_waits_beyond_the_deadline(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    request = ask(app, fleet, within_s=10)["id"]
    now.value += 10
    assert waiting(fleet) == ()
    fleet.requests.tick(now())
    found = shown(app, fleet, request)
    assert (found["status"], found["reason"]) == ("TIMED_OUT", "deadline")
    assert "req/answer/accepted" in answer(fleet, cam, request), "it need not be repeated"
    assert shown(app, fleet, request)["status"] == "TIMED_OUT"


def test_what_is_cancelled_is_no_longer_asked(
    app: httpx.Client, fleet: Service, cam: Identity
) -> None:
    request = ask(app, fleet)["id"]
    done = app.post(f"{API}/requests/{request}/cancel", headers=auth(fleet)).json()
    assert done["status"] == "CANCELED"
    assert waiting(fleet) == ()


def test_what_waits_and_what_is_kept_is_bounded(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    made = [ask(app, fleet)["id"] for _ in range(requests.MAX_OPEN)]
    assert len(waiting(fleet)) == len(made)
    url = f"{API}/devices/cam/requests"
    found = app.post(url, json={"kind": "doctor"}, headers=auth(fleet))
    assert problem(found, 409)["reason"] == "too_many_requests"
    for _ in range(3):
        for request in waiting(fleet):
            answer(fleet, cam, request.request)
        now.value += 1
        for _ in range(requests.MAX_OPEN):
            ask(app, fleet)
    kept = app.get(f"{url}?limit=1000", headers=auth(fleet)).json()["items"]
    assert len([each for each in kept if each["status"] == "SUCCEEDED"]) == KEPT


@pytest.mark.parametrize(
    ("body", "status"),
    [({"kind": "shell"}, 400), ({"kind": "logs", "lines": 1001}, 400), ({}, 400),
     ({"kind": "doctor", "within_s": 0}, 400), ({"kind": "doctor", "x": 1}, 400)],
)  # fmt: skip
def test_what_nobody_can_ask(
    app: httpx.Client, fleet: Service, cam: Identity, body: dict[str, Any], status: int
) -> None:
    problem(app.post(f"{API}/devices/cam/requests", json=body, headers=auth(fleet)), status)


def test_devices_that_are_not_asked(app: httpx.Client, fleet: Service, cam: Identity) -> None:
    body = {"kind": "doctor"}
    found = app.post(f"{API}/devices/nobody/requests", json=body, headers=auth(fleet))
    assert problem(found, 404)["reason"] == "unknown_device"
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").revoked = 1.0
    found = app.post(f"{API}/devices/cam/requests", json=body, headers=auth(fleet))
    assert problem(found, 409)["reason"] == "revoked"
    problem(app.get(f"{API}/requests/x", headers=auth(fleet)), 404)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(payload: bytes) -> None:
    for kind in (requests.Answer, requests.RequestList, requests.RequestGet):
        try:
            found = messages.decode(payload, kind)
        except messages.IntegrityError:
            continue
        assert msgspec.json.encode(found)


@given(st.lists(st.sampled_from(["IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED"])))
def test_after_any_words_the_first_end_holds(words: list[Any]) -> None:
    status, ended = "QUEUED", None
    for word in words:
        if counts(status, word):
            status = word
        ended = ended or (status if status not in OPEN else None)
    assert status == (ended or ("IN_PROGRESS" if words else "QUEUED"))
