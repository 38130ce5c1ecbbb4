"""What a person does wrong between device and fleet: one clear error each, nothing lost."""

import re
from pathlib import Path

import pytest

from system.harness import Done, Site, wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.system]


def assert_clear(done: Done, code: int, *words: str) -> None:
    assert done.code == code, (done.code, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    for word in words:
        assert re.search(word, done.stderr), (word, done.stderr)


def test_enrolment_errors_are_clear_and_leave_nothing(place: Site, tmp_path: Path) -> None:
    place.edgepack("fleet", "groups", "create", "lab")
    place.add_agent("cam", "onnx")
    root = place.publisher / "metadata" / "1.root.json"
    token = place.token("lab")
    config = tmp_path / "other.yaml"

    def enroll(words: str, name: str = "other") -> Done:
        text = f"data_dir: {tmp_path / name}\nrun_dir: {tmp_path / name}-run\nlisten: null\n"
        config.write_text(text)
        from system.harness import run

        return run(
            "edgepack-agent", "--config", config, "enroll", words, "--root", root, env=place.env
        )

    assert_clear(enroll("nonsense"), 2, "token")
    assert enroll(token, "first").code == 0
    assert_clear(enroll(token, "second"), 2, "token", "used")
    assert not list((tmp_path / "second").rglob("*.pem")), "no identity without enrolment"

    import base64
    import json

    facts = json.loads(base64.urlsafe_b64decode(place.token("lab")[4:] + "=="))
    facts["ca"] = "0" * 64
    forged = "ep1." + base64.urlsafe_b64encode(json.dumps(facts).encode()).decode().rstrip("=")
    assert_clear(enroll(forged, "third"), 3, "CA")
    place.stop("fleet")
    assert_clear(enroll(forged, "fourth"), 7)


def test_commands_say_what_is_wrong(place: Site, releases: dict[str, list[Path]]) -> None:
    place.edgepack("fleet", "groups", "create", "lab")
    place.publish(releases["1.0.0"])
    assert_clear(place.run("fleet", "devices", "show", "nobody"), 2, "nobody")
    assert_clear(
        place.run("fleet", "rollouts", "create", "digits@7.7.7", "--group", "lab"), 2, r"7\.7\.7"
    )
    assert_clear(
        place.run("fleet", "rollouts", "create", "digits@1.0.0", "--group", "nowhere"), 2, "nowhere"
    )
    place.stop("fleet")
    assert_clear(place.run("fleet", "devices", "list"), 7)


@pytest.mark.scale
def test_a_device_without_a_broker_keeps_serving(
    place: Site, releases: dict[str, list[Path]]
) -> None:
    place.edgepack("fleet", "groups", "create", "lab")
    place.publish(releases["1.0.0"])
    place.add_agent("cam", "onnx")
    assert place.ended(place.roll_out("digits@1.0.0"))["state"] == "completed"
    place.stop("broker")
    place.kill("cam")
    place.restart("cam")
    wait("the model to be served", lambda: place.version("cam") == "1.0.0")
    assert place.infer("cam") >= 0.9
    status = place.agent_command("cam", "status", "--json")
    assert status.code == 0, status.stderr
    assert status.document["connected"] is False
