"""A real agent answers what its fleet asks: at once, when it is back, or with a reason."""

import json
import logging
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_rig import Device, Site, site
from edgepack import messages, requests
from edgepack_agent.adapters import logs
from edgepack_agent.adapters.requests import PATIENCE_S, Requests
from edgepack_agent.answering import Answering
from edgepack_agent.config import Config, RemoteConfig, TelemetryConfig
from edgepack_agent.core import privacy
from edgepack_agent.core.asking import newest
from edgepack_fleet.asking import LONGEST_S
from edgepack_fleet.web.app import main_app
from fleet_rig import environment, serving, talking_to, wait
from rest_rig import auth

EDGEPACK = Path(sys.executable).with_name("edgepack")
API = "/api/v1"


def listed(token: str, *asked: requests.Request) -> bytes:
    return messages.encode(requests.RequestList(token=token, requests=asked))


class Wire:
    """What a desk says, and a fleet that is played."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.up, self.now = True, 0.0

    def say(self, kind: str, payload: bytes) -> bool:
        self.said.append((kind, json.loads(payload)))
        return self.up

    @property
    def last(self) -> dict[str, Any]:
        return dict(self.said[-1][1])


def test_an_answer_is_repeated_until_it_is_taken_and_forgotten_when_nobody_wants_it() -> None:
    wire, begun = Wire(), list[requests.Request]()
    desk = Requests(wire.say, begun.append, lambda: wire.now)
    desk.ask()
    desk.ask()
    assert [kind for kind, _ in wire.said] == ["req/get"], "one at a time"
    asked = requests.Request(request="q", kind="doctor", left_s=9.0)
    desk.heard("req/get/accepted", listed("another", asked))
    assert begun == [], "an old answer"
    desk.heard("req/get/accepted", listed(wire.last["token"], asked))
    assert begun == [asked]
    wire.up = False
    desk.answer(requests.Answer(token="-", request="q", status="SUCCEEDED"))
    wire.up = True
    desk.link_changed(up=True)
    desk.tick()
    assert wire.said[-1][0] == "req/answer"
    first = wire.last["token"]
    wire.now += PATIENCE_S + 1
    desk.tick()
    assert wire.last["token"] != first
    taken = requests.AnswerTaken(token=first, request="q")
    desk.heard("req/answer/accepted", messages.encode(taken))
    assert desk.wanted("q"), "a word of before"
    taken = requests.AnswerTaken(token=wire.last["token"], request="q")
    desk.heard("req/answer/accepted", messages.encode(taken))
    assert not desk.wanted("q")
    desk.heard("req/get/accepted", b"no message")
    desk.heard("req/unknown", b"{}")


def test_what_the_fleet_lists_no_more_is_not_answered() -> None:
    wire = Wire()
    desk = Requests(wire.say, lambda _: None, lambda: wire.now)
    desk.ask()
    asked = requests.Request(request="q", kind="doctor")
    desk.heard("req/get/accepted", listed(wire.last["token"], asked))
    desk.ask()
    desk.heard("req/get/accepted", listed(wire.last["token"]))
    count = len(wire.said)
    desk.answer(requests.Answer(token="-", request="q", status="SUCCEEDED"))
    desk.tick()
    assert len(wire.said) == count


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("shell", Config(), "unknown_request"),
        ("logs", Config(telemetry=TelemetryConfig(level="off")), "telemetry_off"),
        ("logs", Config(remote=RemoteConfig(answers=("doctor",))), "not_allowed"),
    ],
)
def test_what_a_device_refuses(kind: str, config: Config, reason: str) -> None:
    wire = Wire()
    found = Answering(wire.say, lambda _: None, lambda: config, {}, lambda: wire.now)
    found.requests.ask()
    asked = requests.Request(request="q", kind=kind, left_s=9.0)
    found.requests.heard("req/get/accepted", listed(wire.last["token"], asked))
    assert (wire.last["status"], wire.last["reason"]) == ("REJECTED", reason)
    assert wire.last["message"]


@pytest.mark.parametrize(
    ("finder", "status", "reason"),
    [
        (lambda *_: {"x": "y" * requests.MAX_ANSWER}, "FAILED", "too_large"),
        (lambda *_: 1 / 0, "FAILED", "internal_error"),
        (lambda *_: {"x": 1}, "SUCCEEDED", ""),
    ],
)
def test_what_comes_of_finding_out(finder: Any, status: str, reason: str) -> None:
    wire, happened = Wire(), queue.Queue[Any]()
    found = Answering(wire.say, happened.put, Config, {"logs": finder}, lambda: wire.now)
    found.requests.ask()
    asked = [requests.Request(request=name, kind="logs", left_s=9.0) for name in ("q", "r")]
    found.requests.heard("req/get/accepted", listed(wire.last["token"], *asked))
    assert wire.last["status"] == "IN_PROGRESS"
    happened.get(timeout=10)()
    ends = [said for _, said in wire.said if said.get("status") not in {None, "IN_PROGRESS"}]
    assert [(end["request"], end["status"], end["reason"]) for end in ends] == [
        ("q", status, reason)
    ]
    assert wire.last["request"] == "r", "then comes the next"
    happened.get(timeout=10)()


def test_the_log_that_is_told_is_bounded_and_without_secrets() -> None:
    assert newest([str(n) for n in range(5000)], 3, 1000) == ["4997", "4998", "4999"]
    assert newest(["a" * 500, "b" * 500], 10, 600) == ["b" * 500]
    assert newest(["a"], 0, 600) == []
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logs.begin("info", "test")
        for n in range(3000):
            logging.getLogger("edgepack_agent").info("%d rtsp://me:a-secret@cam/%s", n, "x" * 40)
        told = logs.recent({"lines": 1000})
    finally:
        root.handlers[:], root.level = before[0], before[1]
        logging.captureWarnings(capture=False)
    assert "2999 " in told["lines"][-1]
    assert "a-secret" not in str(told)
    assert len(json.dumps(told)) < requests.MAX_ANSWER


# -- with a real fleet


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def ask(place: Site, app: httpx.Client, kind: str, **facts: Any) -> str:
    body = {"kind": kind} | facts
    made = app.post(f"{API}/devices/cam/requests", json=body, headers=auth(place.service))
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def ended(place: Site, request: str, seconds: float = 60) -> Any:
    def probe() -> Any:
        row = place.service.requests.get(request)
        return row if row.status not in {"QUEUED", "IN_PROGRESS"} else None

    return wait(f"request {request} to end", probe, seconds)


@pytest.mark.mosquitto
def test_a_fleet_asks_a_device_that_is_there_and_one_that_comes_back(place: Site) -> None:
    device = place.device()
    with talking_to(main_app(place.service)) as app:
        early = ask(place, app, "logs", lines=5, within_s=LONGEST_S)
        assert place.service.requests.get(early).status == "QUEUED"
        device.start()
        found = ended(place, early)
        assert (found.status, found.verified) == ("SUCCEEDED", True)
        assert 0 < len(found.result["lines"]) <= 5
        found = ended(place, ask(place, app, "doctor"))
        assert (found.status, found.verified) == ("SUCCEEDED", True)
        assert found.result["schema"] == "edgepack.agent.doctor/v1"
        named = privacy.fleet("metrics", None).keys["up/req/answer"]
        told = {f"result.findings.{key}" for each in found.result["findings"] for key in each}
        assert told | {f"result.{key}" for key in found.result if key != "findings"} <= {*named}
        checks = {each["check"]: each["status"] for each in found.result["findings"]}
        assert (checks["config"], checks["identity"], checks["broker"]) == ("ok", "ok", "ok")
        assert device.stop() == 0
        device.configure(telemetry={"level": "off"})
        device.start()
        found = ended(place, ask(place, app, "logs"))
        assert (found.status, found.reason) == ("REJECTED", "telemetry_off")
        assert found.result == {}


def edgepack(place: Site, port: int, *words: str) -> "subprocess.CompletedProcess[str]":
    token = auth(place.service)["Authorization"].removeprefix("Bearer ")
    return subprocess.run(
        [EDGEPACK, "fleet", *words, "--url", f"http://127.0.0.1:{port}", "--token", token],
        env=environment(place.root), text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.mosquitto
def test_the_command_line_waits_for_the_answer_and_says_why_there_is_none(place: Site) -> None:
    device: Device = place.device()
    with serving(main_app(place.service)) as port:
        late = edgepack(place, port, "devices", "logs", "cam", "--within", "1")
        assert (late.returncode, "deadline" in late.stderr) == (7, True), late.stderr
        device.configure(remote={"answers": ["logs"]})
        device.start()
        said = edgepack(place, port, "devices", "logs", "cam", "--lines", "3", "--json")
        assert said.returncode == 0, said.stderr
        document = json.loads(said.stdout)
        assert document["schema"] == "edgepack.device-request/v1"
        assert 0 < len(document["result"]["lines"]) <= 3
        refused = edgepack(place, port, "devices", "doctor", "cam")
        assert (refused.returncode, "remote.answers" in refused.stderr) == (5, True)
