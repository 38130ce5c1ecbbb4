"""The main job on real parts: roll out, infer, survive a cut network, stop a bad version."""

import json
from pathlib import Path
from typing import Any

import pytest

from digits import digits_folder
from system.harness import Site, wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.system]


@pytest.mark.scale
def test_a_release_reaches_every_device_and_a_bad_one_none(
    place: Site, releases: dict[str, list[Path]]
) -> None:
    place.edgepack("fleet", "groups", "create", "lab")
    place.publish(releases["1.0.0"])
    place.add_agent("cam-onnx", "onnx")
    place.add_agent("cam-openvino", "openvino")

    first = place.ended(place.roll_out("digits@1.0.0"))
    assert first["state"] == "completed"
    assert {n: place.version(n) for n in place.agents} == dict.fromkeys(place.agents, "1.0.0")
    assert all(place.infer(n) >= 0.9 for n in place.agents)

    place.publish(releases["2.0.0"])
    bad = place.ended(place.roll_out("digits@2.0.0"))
    assert bad["state"] == "paused"
    assert "acceptance_below_limit" in bad["reason"]
    refused = [d for d in bad["devices"] if d["reason"] == "acceptance_below_limit"]
    assert len(refused) == 1, "one device tried it, the second wave never started"
    assert {place.version(n) for n in place.agents} == {"1.0.0"}
    assert all(place.infer(n) >= 0.9 for n in place.agents)

    place.publish(releases["3.0.0"])
    assert place.ended(place.roll_out("digits@3.0.0"))["state"] == "completed"
    assert {place.version(n) for n in place.agents} == {"3.0.0"}

    shown = wait(
        "telemetry to arrive",
        lambda: (d := place.asked("devices", "cam-onnx"))["inferences"] >= 40 and d,
    )
    assert shown["bundle"] == "digits@3.0.0"
    assert shown["online"]


@pytest.mark.scale
def test_a_device_infers_offline_and_across_its_own_restart(
    place: Site, releases: dict[str, list[Path]], tmp_path: Path
) -> None:
    pictures = digits_folder(tmp_path / "pictures", 8)
    place.edgepack("fleet", "groups", "create", "lab")
    place.publish(releases["1.0.0"])
    place.add_agent(
        "cam", "onnx", sources=[{"name": "shelf", "source": f"dir:{pictures}", "every_s": 0.2}]
    )
    assert place.ended(place.roll_out("digits@1.0.0"))["state"] == "completed"
    place.kill("broker")
    place.kill("fleet")

    assert place.infer("cam") >= 0.9
    before = outbox(place)
    wait("the counts of that interval to be on disk", lambda: outbox(place) >= before + 2)
    place.kill("cam")
    place.restart("cam")
    wait("the model to be served again without any link", lambda: place.version("cam") == "1.0.0")
    assert place.infer("cam") >= 0.9

    def results() -> list[dict[str, Any]]:
        files = sorted((place.agents["cam"].home / "data").rglob("*.jsonl"))
        return [json.loads(line) for f in files for line in f.read_text().splitlines()]

    found = wait("the folder of pictures to be answered", lambda: len(results()) >= 8 and results())
    right = [r for r in found if r["top"][0]["label"] == Path(r["file"]).stem[-1]]
    assert len(right) >= 0.8 * len(found)

    asked = 40
    place.restart("broker")
    place.restart("fleet")
    place.wait_for_fleet()
    wait(
        "what happened offline to be reported",
        lambda: place.asked("devices", "cam")["inferences"] >= asked,
        90,
    )


def outbox(place: Site) -> int:
    """Return the rows in the outbox of `cam`."""
    status = place.agent_command("cam", "status", "--json")
    assert status.code == 0, status.stderr
    return int(status.document["outbox"]["rows"])
