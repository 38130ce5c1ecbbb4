"""What devices are set to: whose word goes first, what the director says, what they answer."""

from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Targets

from edgepack import messages, requests, topics
from edgepack.settings import SETTINGS, Settings, read_settings
from edgepack.signed import sign_report
from edgepack.trust import TargetInfo
from edgepack_fleet.adapters.mqtt import Incoming
from edgepack_fleet.adapters.request_tables import DeviceSettingsRow
from edgepack_fleet.adapters.tables import DeviceRow, GroupRow
from edgepack_fleet.core import settings as core
from edgepack_fleet.service import Service
from fleet_rig import Identity, enrol
from rest_rig import Now, auth, problem

API = "/api/v1"
LEVEL = "telemetry.level"


@pytest.fixture
def cam(fleet: Service) -> Identity:
    return enrol(fleet, "cam", signs=True)


def change(app: httpx.Client, fleet: Service, now: Now, place: str, **body: Any) -> dict[str, Any]:
    done = app.post(f"{API}/settings/{place}", json=body, headers=auth(fleet))
    assert done.status_code == 200, done.text
    fleet.steering.tick(now())
    return dict(app.get(f"{API}/settings/{place}", headers=auth(fleet)).json())


def targets(fleet: Service, device: str = "cam") -> Targets:
    fleet.director.metadata(device, "timestamp.json")
    names = sorted((fleet.settings.data / "director" / "devices" / device).glob("*.targets.json"))
    newest = max(names, key=lambda path: int(path.name.partition(".")[0]))
    return Metadata[Targets].from_bytes(newest.read_bytes()).signed


def said(fleet: Service, device: str = "cam") -> Settings | None:
    return read_settings(targets(fleet, device).unrecognized_fields.get(SETTINGS))


def say(fleet: Service, kind: str, payload: bytes) -> list[bytes]:
    return [a.payload for a in fleet.uplink.ingest([Incoming(topics.up("cam", kind), payload)])]


def report(fleet: Service, cam: Identity, seq: int, **detail: Any) -> None:
    reason = detail.pop("reason", "")
    event = messages.Event(boot="b", seq=seq, ts=0.0, type="settings", reason=reason, detail=detail)
    assert cam.report_key
    say(fleet, "evt", sign_report("cam", "evt", msgspec.json.encode([event]), 1.0, cam.report_key))


def test_the_director_says_it_and_the_device_says_what_became_of_it(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    found = change(app, fleet, now, "group/lab", set={LEVEL: "health", "poll_s": 60})
    (device,) = found["devices"]
    assert (device["wanted"], device["reported"]) == ({LEVEL: "health", "poll_s": 60}, 0)
    assert said(fleet) == Settings(version=device["version"], values=device["wanted"])
    (answer,) = say(fleet, "req/get", messages.encode(requests.RequestGet(token="t")))
    assert messages.decode(answer, requests.RequestList).settings == device["version"]
    report(fleet, cam, 0, version=device["version"], status="applied", pinned=["poll_s"])
    (device,) = app.get(f"{API}/settings/device/cam", headers=auth(fleet)).json()["devices"]
    assert (device["status"], device["pinned"]) == ("applied", ["poll_s"])
    assert device["reported"] == device["version"]
    report(fleet, cam, 1, version=device["version"] - 1, status="rejected", reason="bad_settings")
    report(fleet, cam, 2, version="x", status="applied")
    (after,) = app.get(f"{API}/settings/device/cam", headers=auth(fleet)).json()["devices"]
    assert after == device, "an old word, and one that cannot be read"


def test_a_device_goes_before_its_group_and_what_is_unset_is_gone(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    change(app, fleet, now, "group/lab", set={LEVEL: "health", "poll_s": 60})
    change(app, fleet, now, "device/cam", set={LEVEL: "off"})
    before = said(fleet)
    assert before
    assert before.values == {LEVEL: "off", "poll_s": 60}
    change(app, fleet, now, "device/cam", unset=[LEVEL, "log_level"])
    change(app, fleet, now, "group/lab", unset=["poll_s"])
    after = said(fleet)
    assert after
    assert after.values == {LEVEL: "health"}
    assert after.version > before.version
    change(app, fleet, now, "group/lab", unset=[LEVEL])
    gone = said(fleet)
    assert gone
    assert gone.values == {}
    assert gone.version > after.version


def test_a_device_that_joins_a_group_or_comes_later_follows_it(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    with fleet.database.write() as session:
        session.add(GroupRow(id="quiet", created=0.0))
    change(app, fleet, now, "group/quiet", set={LEVEL: "off"})
    assert said(fleet) is None
    with fleet.database.write() as session:
        session.get_one(DeviceRow, "cam").group_id = "quiet"
    enrol(fleet, "late", "quiet")
    now.value += 60
    fleet.steering.tick(now())
    for device in ("cam", "late"):
        found = said(fleet, device)
        assert found
        assert found.values == {LEVEL: "off"}


def test_model_and_settings_are_said_side_by_side(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    model = TargetInfo("models/m/1.0.0/onnx-fp32.json", "0" * 64, 10, {"kind": "x"})
    fleet.director.assign("cam", model)
    change(app, fleet, now, "device/cam", set={LEVEL: "off"})
    assert [*targets(fleet).targets] == [model.path]
    other = TargetInfo("models/m/2.0.0/onnx-fp32.json", "1" * 64, 10, {"kind": "x"})
    fleet.director.assign("cam", other)
    found = said(fleet)
    assert found
    assert found.values == {LEVEL: "off"}
    assert [*targets(fleet).targets] == [other.path]


def test_a_kill_between_the_directors_word_and_ours_is_made_good(
    app: httpx.Client, fleet: Service, cam: Identity, now: Now
) -> None:
    change(app, fleet, now, "device/cam", set={LEVEL: "off"})
    with fleet.database.write() as session:
        session.delete(session.get_one(DeviceSettingsRow, "cam"))
    now.value += 60
    fleet.steering.tick(now())
    with fleet.database.read() as session:
        row = session.get_one(DeviceSettingsRow, "cam")
    found = said(fleet)
    assert found == Settings(version=row.version, values={LEVEL: "off"})
    version = targets(fleet).version
    now.value += 60
    fleet.steering.tick(now())
    assert targets(fleet).version == version, "nothing is signed twice"


@pytest.mark.parametrize(
    ("place", "body", "status", "reason"),
    [
        ("group/lab", {"set": {"broker": "x"}}, 400, "bad_settings"),
        ("group/lab", {"set": {LEVEL: 7}}, 400, "bad_settings"),
        ("group/none", {"set": {LEVEL: "off"}}, 404, "unknown_group"),
        ("device/none", {"set": {LEVEL: "off"}}, 404, "unknown_device"),
        ("fleet/all", {"set": {LEVEL: "off"}}, 400, "bad_request"),
    ],
)
def test_what_cannot_be_set(
    app: httpx.Client,
    fleet: Service,
    cam: Identity,
    place: str,
    body: Any,
    status: int,
    reason: str,
) -> None:
    found = app.post(f"{API}/settings/{place}", json=body, headers=auth(fleet))
    assert problem(found, status)["reason"] == reason
    assert said(fleet) is None


VALUES = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3))


@given(VALUES, VALUES, VALUES, st.integers(0, 2**40), st.floats(0, 2e9))
def test_whose_word_goes_first(
    group: dict[str, int], device: dict[str, int], more: dict[str, int], last: int, now: float
) -> None:
    found = core.wanted(group, device)
    assert all(found[key] == device.get(key, group.get(key)) for key in found)
    assert found.keys() == group.keys() | device.keys()
    assert core.changed(core.changed(device, more, ()), {}, tuple(more)) == {
        key: value for key, value in device.items() if key not in more
    }
    assert core.next_version(last, now) > last
