"""The fleet host is stolen with every online key: enrolled devices still run nothing unapproved."""

import shutil
from pathlib import Path

import pytest

from system.harness import Site, build_release

pytestmark = [pytest.mark.mosquitto, pytest.mark.system]


@pytest.mark.scale
def test_a_swapped_image_repository_moves_no_device(
    place: Site, releases: dict[str, list[Path]], tmp_path: Path
) -> None:
    place.edgepack("fleet", "groups", "create", "lab")
    place.publish(releases["1.0.0"])
    place.add_agent("cam", "onnx")
    assert place.ended(place.roll_out("digits@1.0.0"))["state"] == "completed"

    # The thief owns the host: same CA, same director and online keys, same database. They throw
    # the image repository away and publish their own, with their own offline keys.
    place.stop("fleet")
    shutil.rmtree(place.data / "image" / "metadata")
    place.restart("fleet")
    place.wait_for_fleet()
    shutil.move(place.publisher, tmp_path / "honest-publisher")
    place.init_publisher()
    evil = build_release(tmp_path / "evil" / "9.0.0", "9.0.0", wrong=0.0, env=place.env)
    place.publish(evil, min_score=0.0)

    rollout = place.ended(place.roll_out("digits@9.0.0", probation=0))
    assert rollout["state"] == "paused"
    (device,) = rollout["devices"]
    assert device["status"] in {"REJECTED", "FAILED"}
    assert device["reason"] in {"bad_signature", "rollback", "bad_metadata", "not_in_image_repo"}
    assert place.version("cam") == "1.0.0"
    assert place.infer("cam") >= 0.9
    place.kill("cam")
    place.restart("cam")
    status = place.agent_command("cam", "config", "check")
    assert status.code == 0, status.stderr
    from system.harness import wait

    wait("the agent to serve again", lambda: place.version("cam"))
    assert place.version("cam") == "1.0.0"
