"""Who measures a release, and what the fleet keeps of what it is told."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack import messages, requests, topics
from edgepack.messages import Inventory
from edgepack.signed import sign_report
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core.benchmarks import Candidate, choose, class_of
from edgepack_fleet.measured import KEPT
from edgepack_fleet.service import Service
from fleet_rig import Identity, enrol, publisher
from rest_rig import Now, auth, problem

API = "/api/v1"
ARCHES = st.sampled_from(["x86_64", "aarch64"])


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    found = []
    for n in range(draw(st.integers(0, 12))):
        inventory = Inventory(arch=draw(ARCHES), ram_mb=draw(st.sampled_from([1000, 1024, 8000])))
        online, busy = draw(st.booleans()), draw(st.booleans())
        seen = draw(st.floats(0, 10))
        found.append(Candidate(f"d{n}", draw(ARCHES), inventory, online, busy, seen))
    return found


@given(candidates(), st.integers(1, 4))
def test_every_class_is_measured_by_those_who_can_soonest(
    every: list[Candidate], each: int
) -> None:
    chosen = choose(every, each)
    classes = {class_of(c) for c in every}
    for kind in classes:
        members = [c for c in every if class_of(c) == kind]
        mine = [c for c in chosen if class_of(c) == kind]
        assert len(mine) == min(each, len(members))
        others = [c for c in members if c not in mine]
        ready = [c.online and not c.busy for c in mine]
        assert all(ready) or not any(c.online and not c.busy for c in others)


# -- over REST


@pytest.fixture
def release(fleet: Service) -> str:
    publisher(fleet.settings.data).release()
    return "digits@1.0.0"


@pytest.fixture
def cam(fleet: Service) -> Identity:
    return enrol(fleet, "cam", signs=True)


def document(sha256: str, p50: float = 2.0) -> dict[str, Any]:
    latency = {"p50": p50, "p95": 3.0}
    numbers = {
        "load_ms": 1.0, "first_ms": 1.0, "latency_ms": latency, "throughput_per_s": 500.0,
        "peak_rss_mb": 50.0,
    }  # fmt: skip
    effective = {"runtime": "onnx", "version": "1", "precision": "fp32", "device": "CPU"}
    host = {"machine": "x86_64", "system": "Linux", "cpu": "", "cpus": 2, "memory_mb": 1}
    return {
        "schema": "edgepack.benchmark/v1", "bundle": "digits@1.0.0", "digest": f"sha256:{sha256}",
        "target": "onnx", "precision": "fp32", "threads": None, **numbers,
        "runs": [numbers | {"inferences": 9}], "effective": effective | {"threads": 1},
        "host": host | {"cpu_features": []},
    }  # fmt: skip


def ask(app: httpx.Client, fleet: Service, release: str, **body: Any) -> httpx.Response:
    return app.post(f"{API}/releases/{release}/measurements", json=body, headers=auth(fleet))


def answer(fleet: Service, cam: Identity, request: str, result: dict[str, Any]) -> None:
    said = requests.Answer(token="t", request=request, status="SUCCEEDED", result=result)
    assert cam.report_key
    word = sign_report("cam", "req/answer", messages.encode(said), 1.0, cam.report_key)
    fleet.uplink.ingest([Incoming(topics.up("cam", "req/answer"), word)])


def measured(app: httpx.Client, fleet: Service, release: str) -> list[dict[str, Any]]:
    found = app.get(f"{API}/releases/{release}/measurements", headers=auth(fleet, "viewer"))
    assert found.status_code == 200
    return list(found.json()["measurements"])


def test_what_a_device_measures_is_kept_if_it_is_what_was_asked(
    app: httpx.Client, fleet: Service, cam: Identity, release: str, now: Now
) -> None:
    made = ask(app, fleet, release, group="lab")
    assert made.status_code == 201, made.text
    (request,) = made.json()["requests"]
    sha256 = request["args"]["target"]["sha256"]
    again = ask(app, fleet, release, group="lab")
    assert problem(again, 409)["reason"] == "no_device_fits"
    answer(fleet, cam, request["id"], document("0" * 64))
    refused = fleet.requests.get(request["id"])
    assert (refused.status, refused.reason) == ("FAILED", "bad_measurement")
    assert measured(app, fleet, release) == []
    for count in range(KEPT + 2):
        (request,) = ask(app, fleet, release, device="cam").json()["requests"]
        answer(fleet, cam, request["id"], document(sha256, p50=float(count + 1)))
    found = measured(app, fleet, release)
    assert [m["document"]["latency_ms"]["p50"] for m in found] == [7.0, 6.0, 5.0, 4.0, 3.0]
    assert all(m["verified"] for m in found)


@pytest.mark.parametrize("result", [{}, {"schema": "x"}, {"latency_ms": {"p50": -1}}])
def test_what_is_no_measurement_is_none(
    app: httpx.Client, fleet: Service, cam: Identity, release: str, result: dict[str, Any]
) -> None:
    (request,) = ask(app, fleet, release, group="lab").json()["requests"]
    answer(fleet, cam, request["id"], result)
    assert fleet.requests.get(request["id"]).reason == "bad_measurement"
    assert measured(app, fleet, release) == []


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "bad_request"),
        ({"group": "lab", "device": "cam"}, 400, "bad_request"),
        ({"group": "none"}, 404, "unknown_group"),
        ({"device": "none"}, 404, "unknown_device"),
        ({"group": "lab", "each": 0}, 400, "bad_request"),
    ],
)
def test_what_cannot_be_asked(
    app: httpx.Client,
    fleet: Service,
    cam: Identity,
    release: str,
    body: Any,
    status: int,
    reason: str,
) -> None:
    assert problem(ask(app, fleet, release, **body), status)["reason"] == reason


def test_a_device_that_it_does_not_fit_is_left_out_with_the_reason(
    app: httpx.Client, fleet: Service, cam: Identity, release: str
) -> None:
    enrol(fleet, "other", inventory=Inventory(arch="x86_64", runtimes={"openvino": "1"}))
    made = ask(app, fleet, release, group="lab").json()
    assert [r["device"] for r in made["requests"]] == ["cam"]
    (left,) = made["left_out"]
    assert left["device"] == "other"
    assert "onnx" in left["reason"]
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").revoked = 1.0
    found = ask(app, fleet, release, group="lab")
    assert problem(found, 409)["reason"] == "no_device_fits"
    problem(ask(app, fleet, "none@1.0.0", group="lab"), 404)
