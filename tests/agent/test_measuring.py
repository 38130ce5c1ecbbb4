"""A real device measures a release that it does not install, and gives way to an update."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import Device, Site, site
from edgepack.errors import EdgepackError
from edgepack_agent.adapters.benchmark import measure
from edgepack_agent.core import privacy
from edgepack_fleet.web.app import main_app
from edgepack_packager.adapters.profile import read_profiles
from fleet_rig import environment, serving, wait
from rest_rig import auth

pytestmark = pytest.mark.mosquitto
EDGEPACK = Path(sys.executable).with_name("edgepack")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def edgepack(place: Site, port: int, *words: str) -> "subprocess.CompletedProcess[str]":
    token = auth(place.service)["Authorization"].removeprefix("Bearer ")
    return subprocess.run(
        [EDGEPACK, "fleet", *words, "--url", f"http://127.0.0.1:{port}", "--token", token],
        env=environment(place.root), text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip


def paths(document: Any, before: str) -> Iterator[str]:
    """Yield every path of DOCUMENT that leads to a value."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield from paths(value, f"{before}.{name}")
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        for value in document:
            yield from paths(value, before)
    else:
        yield before


@pytest.mark.scale
def test_a_release_is_measured_before_it_is_rolled_out(place: Site, tmp_path: Path) -> None:
    device: Device = place.running_1()
    place.publish("1.1.0")
    profile = tmp_path / "profile.json"
    with serving(main_app(place.service)) as port:
        done = edgepack(
            place, port, "releases", "measure", "digits@1.1.0", "--group", "lab", "--within", "90",
            "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (measured,) = json.loads(done.stdout)["measurements"]
        assert (measured["device"], measured["verified"]) == ("cam", True)
        said = measured["document"]
        assert (said["schema"], said["bundle"]) == ("edgepack.benchmark/v1", "digits@1.1.0")
        assert said["latency_ms"]["p50"] > 0
        assert {*paths(said, "result")} <= {*privacy.fleet("metrics", None).keys["up/req/answer"]}
        shown = edgepack(
            place, port, "releases", "measurements", "digits@1.1.0", "--profile", str(profile)
        )
        assert shown.returncode == 0, shown.stderr
        assert "cam" in shown.stdout
        unknown = edgepack(place, port, "releases", "measure", "digits@9.0.0", "--group", "lab")
        assert unknown.returncode == 2
    (found,) = read_profiles(profile)
    assert (found.bundle, found.latency_ms) == ("digits@1.1.0", said["latency_ms"]["p50"])
    assert device.serving() == "digits@1.0.0"
    assert device.status()["candidate"] is None
    assert not (device.data / "slots" / ".measured").exists()
    # What was fetched for it is there for the rollout.
    assert place.ended(place.roll_out("1.1.0")) == "completed"


@pytest.mark.scale
def test_an_update_goes_first_and_then_the_measurement_begins_again(place: Site) -> None:
    device: Device = place.running_1()
    place.publish("1.1.0", padding=3_000_000)
    place.publish("1.2.0")
    asked = place.service.benchmarks.ask(
        "digits@1.1.0", group=None, device="cam", each=1, within_s=120
    )
    (request,) = asked.requests
    place.service.poke()

    def status() -> str:
        return place.service.requests.get(request.id).status

    wait("the device to begin", lambda: status() == "IN_PROGRESS")
    assert place.ended(place.roll_out("1.2.0")) == "completed"
    wait("the measurement", lambda: status() == "SUCCEEDED", 120)
    device.comes_to_serve("digits@1.2.0")


@pytest.mark.scale
def test_a_measurement_is_shut_in_and_ends_when_it_is_told_to(place: Site, tmp_path: Path) -> None:
    place.publish("1.0.0")
    device: Device = place.running_1()
    slot = device.data / "slots" / "current"
    found = measure(slot.resolve(), tmp_path, 1, lambda: False)
    assert found["threads"] == 1
    with pytest.raises(EdgepackError) as caught:
        measure(slot.resolve(), tmp_path, 1, lambda: True)
    assert caught.value.reason == "cancelled"
    with pytest.raises(EdgepackError) as caught:
        measure(tmp_path / "nothing", tmp_path, 1, lambda: False)
    assert caught.value.reason == "file_missing"
    assert [*tmp_path.glob("measure-*")] == []
