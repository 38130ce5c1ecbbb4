"""At the device: models from a mirror, and models that their publisher revokes."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_rig import AGENT, Device, Site, site
from edgepack import messages
from edgepack.errors import UnsupportedError, UsageError
from edgepack.trust import DeviceFacts, ModelCustom, TargetInfo
from edgepack_agent.core.choice import Wish, choose
from fleet_rig import publisher, wait

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def install(device: Device, *words: str) -> tuple[int, dict[str, Any], str]:
    """Run `edgepack-agent install` and return its exit code, its document and its words."""
    line = [AGENT, "--config", device.config, "install", *words, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_a_mirror_brings_a_model_to_a_site_without_a_network(place: Site, tmp_path: Path) -> None:
    device = place.running_1(allow_local_install=True)
    place.publish("3.0.0")
    place.publish("2.0.0")
    world = publisher(place.service.settings.data)
    stick = tmp_path / "stick"
    world.export(stick)
    place.broker.kill()

    code, _, words = install(device, str(stick), "--release", "digits@2.0.0")
    assert (code, "acceptance_below_limit" in words) == (4, True)
    code, found, _ = install(device, str(stick))
    assert (code, found["bundle"]) == (0, "digits@3.0.0"), "the newest of its line"
    assert device.accuracy() >= 0.9
    code, _, words = install(device, str(stick), "--release", "digits@9.9.9")
    assert (code, "9.9.9" in words) == (2, True)

    carried = tmp_path / "cam.json"
    line = [AGENT, "--config", device.config, "export", carried, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"] > 0
    export = messages.decode(carried.read_bytes(), messages.Export)
    assert export.status["bundle"] == "digits@3.0.0"
    take = place.service.uplink.carried
    for message in export.messages:
        assert take("cam", message.kind, message.payload) == ""
        other = b"B" if message.payload[-20:-19] == b"A" else b"A"
        changed = message.payload[:-20] + other + message.payload[-19:]
        assert take("cam", message.kind, changed) != ""
    assert len(place.events("activated")) == 2, "the file has told it"
    counted = place.inferences()
    for message in export.messages:
        assert take("cam", message.kind, message.payload) == ""
    assert place.inferences() == counted, "nothing counts twice"

    place.broker.start()
    wait("the link", lambda: device.status().get("outbox", {}).get("rows") == 0 or None, 60)
    assert len(place.events("activated")) == 2
    assert place.events("activated")[-1]["detail"] == {"override": True}
    assert place.ended(place.roll_out("1.0.0")) == "completed", "the fleet replaces it"


def damage(stick: Path, harm: str) -> None:
    """Do HARM to the mirror STICK."""
    if harm == "timestamp":
        path = stick / "metadata" / "timestamp.json"
        path.write_bytes(path.read_bytes().replace(b'"version":', b'"version":1'))
        return
    for blob in (stick / "blobs" / "sha256").iterdir():
        data = blob.read_bytes()
        blob.write_bytes({"blob": data[:-1] + b"?", "longer": data + b"?"}[harm])


def test_a_mirror_that_was_changed_installs_nothing(place: Site, tmp_path: Path) -> None:
    device = place.running_1(allow_local_install=True)
    place.publish("3.0.0")
    for harm in ("blob", "longer", "timestamp"):
        stick = tmp_path / f"stick-{harm}"
        publisher(place.service.settings.data).export(stick)
        damage(stick, harm)
        code, found, words = install(device, str(stick))
        assert (code, found) == (3, {}), f"{harm}: {words}"
    code, found, words = install(device, str(tmp_path))
    assert (code, found) == (3, {}), words
    assert device.serving() == "digits@1.0.0"


def test_a_revoked_model_stops_or_goes_on_as_its_publisher_says(place: Site) -> None:
    device = place.running_1()
    world = publisher(place.service.settings.data)
    world.revoke(1, "keep")
    device.ask("sync")
    (event,) = place.told("revoked")
    assert (event["bundle"], event["detail"]) == ("digits@1.0.0", {"policy": "keep"})
    assert device.accuracy() >= 0.9

    world.revoke(1, "stop")
    device.ask("sync")
    wait("the end of it", lambda: device.status().get("bundle", "") is None)
    assert device.status()["serving"] is None
    _, event = place.told("revoked", 2)
    assert event["detail"] == {"policy": "stop"}
    device.kill()
    device.start()
    status = wait("the agent", device.status)
    found = (status["bundle"], status["serving"])
    assert found == (None, None), "a restart does not bring it back"


# -- which variant of a mirror


def offered(version: str, runtime: str, precision: str, **facts: Any) -> TargetInfo:
    name = facts.pop("name", "digits")
    custom = {"kind": "model", "name": name, "version": version, "runtime": runtime,
              "precision": precision, "arch": [], "cpu_features": [], "min_runtime": "1.0",
              "epoch": 0} | facts  # fmt: skip
    path = f"models/{name}/{version}/{runtime}-{precision}.json"
    return TargetInfo(path, "0" * 64, 100, custom)


FACTS = DeviceFacts({"openvino": "2026.1", "onnx": "1.23"}, "x86_64", frozenset({"avx2"}))
OFFERS = [
    offered("1.9.0", "onnx", "fp32"),
    offered("1.10.0", "onnx", "int8"),
    offered("1.10.0", "openvino", "fp32"),
    offered("1.10.0", "openvino", "int8", cpu_features=["avx512_vnni"]),
    offered("1.11.0-rc.1", "tflite", "int8"),
]


def test_the_devices_order_of_runtimes_decides_among_what_fits() -> None:
    found = choose(OFFERS, FACTS, Wish("digits@1.10.0"))
    assert found.path == OFFERS[2].path, "the first runtime, without what it cannot run"


def test_the_newest_release_of_the_line_in_use_is_meant_unless_another_is_named() -> None:
    assert choose(OFFERS[:3], FACTS, Wish(line="digits")).model.version == "1.10.0"
    with pytest.raises(UnsupportedError) as found:
        choose(OFFERS, FACTS, Wish(line="digits"))
    assert found.value.reason == "wrong_runtime"
    others = [*OFFERS[:1], offered("1.0.0", "onnx", "fp32", name="faces")]
    assert choose(others, FACTS, Wish(line="faces")).model.name == "faces"
    with pytest.raises(UsageError, match="not said which"):
        choose(others, FACTS, Wish())
    with pytest.raises(UsageError, match="does not have"):
        choose(others, FACTS, Wish("digits@7.0.0"))
    with pytest.raises(UsageError):
        choose([], FACTS, Wish())


def test_a_prerelease_comes_before_its_release() -> None:
    offers = [offered(v, "onnx", "fp32") for v in ("1.0.0-rc.1", "1.0.0", "0.9.9")]
    assert choose(offers, FACTS, Wish()).model.version == "1.0.0"


def test_custom_facts_of_the_offers_are_those_of_real_targets() -> None:
    assert isinstance(OFFERS[0].model, ModelCustom)
