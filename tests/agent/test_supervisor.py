"""Real agents on a real fleet and broker: updates, refusals, sudden ends, people at the device."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_rig import AGENT, Device, Site, digits_release, rss_mb, runners, site
from edgepack.bundle import open_bundle
from edgepack.errors import EdgepackError
from edgepack_fleet.core.gates import parse_gate
from fleet_rig import wait

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


@dataclass(frozen=True)
class Calm:
    """A site whose device runs 1.0.0, before and after every test that uses it."""

    place: Site
    device: Device


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calm]:
    with site(tmp_path_factory.mktemp("calm")) as place:
        yield Calm(place, running_1(place))


def running_1(place: Site, **config: object) -> Device:
    """Return a device that runs 1.0.0."""
    return place.running_1(**config)


def only_runner(device: Device) -> int:
    """Return the runner of DEVICE once those of earlier models have ended."""
    (found,) = wait("one runner alone", lambda: len(r := runners(device)) == 1 and r)
    return found


def test_the_whole_story_of_three_versions(place: Site) -> None:
    device = running_1(place)
    assert device.serving() == "digits@1.0.0"
    assert device.accuracy() >= 0.9

    place.publish("2.0.0")
    bad = place.roll_out("2.0.0")
    assert place.ended(bad) == "paused"
    job = place.job(bad)
    assert (job.status, job.reason) == ("REJECTED", "acceptance_below_limit")
    assert 0.3 < job.detail["score"] < job.detail["min_score"]
    assert device.serving() == "digits@1.0.0"

    place.publish("3.0.0")
    assert place.ended(place.roll_out("3.0.0")) == "completed"
    assert device.serving() == "digits@3.0.0"
    assert device.accuracy() >= 0.9

    assert device.stop() == 0
    wait("the last counts to arrive", lambda: place.inferences() >= 40)
    assert place.inferences() == 40
    assert [event["bundle"] for event in place.told("activated", 2)] == [
        "digits@1.0.0",
        "digits@3.0.0",
    ]
    (rejected,) = place.told("rejected")
    assert (rejected["bundle"], rejected["detail"]["release"]) == ("digits@1.0.0", "digits@2.0.0")
    assert len(place.told("inventory")) == 1


def test_a_bundle_whose_golden_vectors_do_not_come_out_is_rejected(calm: Calm) -> None:
    place, device = calm.place, calm.device
    place.publish("4.0.0", lie=True)
    rollout = place.roll_out("4.0.0")
    assert place.ended(rollout) == "paused"
    assert place.job(rollout).reason == "golden_mismatch"
    assert device.serving() == "digits@1.0.0"
    slots = sorted(path.name for path in (device.data / "slots").iterdir())
    assert slots == ["a", "current"], "nothing of it is left"


@pytest.mark.scale
def test_a_device_that_is_not_there_fails_the_update_and_is_said_at_the_start(place: Site) -> None:
    device = running_1(place)
    facts = device.status()["runner"]
    assert (facts["precision"], facts["device"], facts["hint"]) == (
        "f32",
        "CPUExecutionProvider",
        "",
    )
    device.stop()
    device.configure(device="NPU")
    device.start()
    wait("the trouble", lambda: device.status().get("trouble") == "no_device")
    place.publish("3.0.0")
    rollout = place.roll_out("3.0.0")
    assert place.ended(rollout) == "paused"
    job = place.job(rollout)
    assert (job.status, job.reason) == ("FAILED", "no_device")
    assert "has no NPU here" in job.detail["message"]
    device.stop()
    device.configure(device="CPU")
    device.start()
    wait("the model that was there", lambda: device.serving() == "digits@1.0.0")


def test_kill_9_at_any_moment_ends_in_the_new_version(place: Site) -> None:
    device = running_1(place)
    for seed in range(3):
        version = f"3.0.{seed}"
        place.publish(version)
        rollout = place.roll_out(version, probation_s=1)
        time.sleep(random.Random(seed).uniform(0.1, 1.8))
        device.kill()
        device.start()
        wait("something to be served again", device.serving)
        assert place.ended(rollout) == "completed"
        assert device.serving() == f"digits@{version}"
    assert device.accuracy() >= 0.9


@pytest.mark.scale
def test_a_model_that_restarts_the_agent_for_ever_is_given_up(place: Site) -> None:
    device = running_1(place)
    place.publish("3.0.0")
    rollout = place.roll_out("3.0.0", probation_s=60)
    for _ in range(4):
        wait("the probation", lambda: device.status().get("phase") == "probation")
        device.kill()
        device.start()
    assert place.ended(rollout) == "paused"
    assert place.job(rollout).reason == "restart_loop"
    wait("the old model to answer", lambda: device.serving() == "digits@1.0.0")


def test_a_result_is_reported_after_a_broken_broker_and_a_restart(place: Site) -> None:
    device = running_1(place)
    place.publish("3.0.0")
    rollout = place.roll_out("3.0.0", probation_s=2)
    wait("the probation", lambda: device.status().get("phase") == "probation")
    place.broker.kill()
    wait("the commit without a link", lambda: device.status().get("unreported"), 30)
    assert device.serving() == "digits@3.0.0"
    device.kill()
    place.broker.start()
    device.start()
    assert place.ended(rollout) == "completed"


def on_probation(device: Device, version: str) -> bool:
    return device.status().get("phase") == "probation" and device.serving() == f"digits@{version}"


def candidate(device: Device, old: int, version: str) -> int:
    """Return the runner of VERSION, beside the one that is OLD, once it is on probation."""

    def probe() -> set[int] | None:
        # First who is there: of one that has died, the agent may not have heard yet.
        found = set(runners(device)) - {old}
        return found if found and on_probation(device, version) else None

    (new,) = wait(f"the probation of {version}", probe)
    return new


def test_a_candidate_that_dies_twice_in_probation_is_rolled_back_at_once(calm: Calm) -> None:
    place, device = calm.place, calm.device
    old = only_runner(device)
    place.publish("3.1.0")
    rollout = place.roll_out("3.1.0", probation_s=30)
    for death in ("first", "second"):
        new = candidate(device, old, "3.1.0")
        os.kill(new, signal.SIGKILL)
        wait(f"the {death} death to be noticed", lambda new=new: new not in runners(device))
    assert place.ended(rollout) == "paused"
    assert place.job(rollout).reason == "runner_exited"
    assert device.accuracy() >= 0.9
    device.comes_to_serve("digits@1.0.0")
    assert only_runner(device) == old, "it never went away"
    (event,) = place.told("rolled_back")
    assert event["bundle"] == "digits@1.0.0"


def test_a_candidate_that_hangs_in_probation_is_rolled_back(calm: Calm) -> None:
    place, device = calm.place, calm.device
    old = only_runner(device)
    place.publish("3.2.0")
    rollout = place.roll_out("3.2.0", probation_s=60)
    os.kill(candidate(device, old, "3.2.0"), signal.SIGSTOP)
    assert place.ended(rollout) == "paused"
    assert place.job(rollout).reason == "no_heartbeat"
    device.comes_to_serve("digits@1.0.0")


def test_cancelling_a_rollout_takes_the_candidate_back(calm: Calm) -> None:
    place, device = calm.place, calm.device
    place.publish("3.3.0")
    rollout = place.roll_out("3.3.0", probation_s=60)
    wait("the probation", lambda: device.status().get("phase") == "probation")
    place.service.rollouts.cancel(rollout)
    wait("the way back", lambda: device.status().get("phase") == "idle")
    device.comes_to_serve("digits@1.0.0")


def test_offline_it_serves_across_restarts_and_crashes(place: Site) -> None:
    device = running_1(place)
    place.broker.kill()
    assert device.accuracy() >= 0.9
    device.kill()
    device.start()
    wait("the model to be served", device.serving)
    assert device.accuracy() >= 0.9
    (runner,) = runners(device)
    os.kill(runner, signal.SIGKILL)
    wait("another runner", lambda: device.serving() and runners(device) != [runner])
    assert device.accuracy() >= 0.9
    assert device.status()["connected"] is False
    place.broker.start()
    wait("the link", lambda: device.ask("sync")["connected"])
    assert device.stop() == 0


def test_a_lost_journal_costs_no_inference(place: Site) -> None:
    device = running_1(place)
    boot = device.status()["outbox"]["boot"]
    device.kill()
    for leftover in device.data.glob("journal.db-*"):
        leftover.unlink()
    (device.data / "journal.db").write_bytes(b"rubbish" * 999)
    device.start()
    wait("the model to be served", device.serving)
    assert device.accuracy() >= 0.9
    assert device.status()["outbox"]["boot"] != boot
    place.told("recovered")
    place.publish("3.0.0")
    assert place.ended(place.roll_out("3.0.0")) == "completed"


def test_a_damaged_slot_is_left_for_the_previous_model(place: Site) -> None:
    device = running_1(place)
    place.publish("3.0.0")
    assert place.ended(place.roll_out("3.0.0")) == "completed"
    device.kill()
    manifest = device.data / "slots" / "current" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"3.0.0", b"9.9.9"))
    device.start()
    wait("the previous model", lambda: device.status().get("serving") == "digits@1.0.0")
    assert device.accuracy() >= 0.9
    (event,) = place.told("damaged")
    assert event["bundle"] == "digits@3.0.0"


def fill(path: Path) -> None:
    """Write to PATH until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def test_no_room_for_a_model_is_a_clear_failure_and_the_old_one_runs(
    place: Site, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs CAP_SYS_ADMIN)")
    try:
        place.publish("1.0.0")
        device = place.device(data_dir=str(disk / "data"))
        (disk / "data").mkdir()
        shutil.move(device.data / "identity", disk / "data" / "identity")
        device.start()
        wait("the device to connect", lambda: device.status().get("connected"))
        assert place.ended(place.roll_out("1.0.0")) == "completed"
        (disk / "ballast").write_bytes(b"x" * 8 * 2**20)
        place.publish("3.0.0")
        rollout = place.roll_out("3.0.0")
        assert place.ended(rollout) == "paused"
        job = place.job(rollout)
        assert (job.status, job.reason) == ("FAILED", "disk_full")
        assert device.serving() == "digits@1.0.0"
        assert not list((disk / "data" / "parts").iterdir())

        fill(disk / "more")
        assert device.accuracy() >= 0.9
        time.sleep(1.5)  # several intervals whose rows cannot be written
        assert device.accuracy() >= 0.9
        assert device.status()["serving"] == "digits@1.0.0"
        (disk / "more").unlink()
        wait("what was counted meanwhile", lambda: place.inferences() >= 40)
        assert place.inferences() == 40
        assert device.stop() == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_person_installs_from_a_file_and_goes_back(place: Site) -> None:
    device = running_1(place, allow_local_install=True)
    bundle = place.publish("3.0.0")
    with bundle.open("rb") as file:
        assert device.ask("install", file.fileno()) == {"bundle": "digits@3.0.0"}
    assert device.serving() == "digits@3.0.0"
    assert device.ask("rollback") == {"bundle": "digits@1.0.0"}
    assert device.serving() == "digits@1.0.0"
    *_, last = told = place.told("activated", 3)
    assert (len(told), last["detail"]) == (3, {"override": True})


def refused(device: Device, bundle: Path) -> EdgepackError:
    with bundle.open("rb") as file, pytest.raises(EdgepackError) as found:
        device.ask("install", file.fileno())
    assert device.serving() == "digits@1.0.0"
    return found.value


def test_a_file_meets_the_same_checks_as_a_download(place: Site, tmp_path: Path) -> None:
    device = running_1(place, allow_local_install=True)
    unknown = digits_release(tmp_path / "other", "7.0.0")
    assert refused(device, unknown).reason == "not_in_image_repo"
    assert refused(device, place.publish("2.0.0")).reason == "acceptance_below_limit"
    torn = tmp_path / "torn.edgepack"
    torn.write_bytes(unknown.read_bytes()[:-100])
    assert refused(device, torn).exit_code == 3
    with open_bundle(unknown) as good:
        assert good.signed


def test_without_permission_nobody_installs_from_a_file(calm: Calm) -> None:
    place, device = calm.place, calm.device
    found = refused(device, place.publish("3.4.0"))
    assert (found.reason, found.exit_code) == ("not_allowed", 2)
    with pytest.raises(EdgepackError, match="no previous"):
        device.ask("rollback")
    with pytest.raises(EdgepackError, match="dance"):
        device.ask("dance")
    assert device.ask("sync") == {"connected": True}


def told(device: Device, *words: str) -> dict[str, Any]:
    """Run a command of the agent's own and return what it prints."""
    line = [AGENT, "--config", device.config, *words, "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_locked_device_defers_says_so_and_goes_on_when_it_is_unlocked(calm: Calm) -> None:
    place, device = calm.place, calm.device
    until = told(device, "lock", "--for", "1h", "--reason", "exhibition")["until"]
    assert until > time.time() + 3500
    place.publish("5.0.0", lie=True)
    rollout = place.roll_out("5.0.0")
    wait("the deferral", lambda: device.status().get("phase") == "deferred")
    held = device.status()["deferred"]
    assert (held["reason"], held["message"]) == ("lock", "exhibition")
    wait("the fleet to know", lambda: place.job(rollout).state == "deferred")
    job = place.job(rollout)
    assert (job.status, job.reason) == ("IN_PROGRESS", "lock")
    device.kill()
    device.start()
    wait("the same after a restart", lambda: device.status().get("phase") == "deferred")
    assert device.status()["lock"]["reason"] == "exhibition"
    assert told(device, "unlock")["locked"] is False
    assert place.ended(rollout) == "paused"
    assert place.job(rollout).reason == "golden_mismatch"
    device.comes_to_serve("digits@1.0.0")


def test_a_deferred_job_can_be_cancelled(calm: Calm) -> None:
    place, device = calm.place, calm.device
    inhibitor = device.home / "run" / "inhibit" / "surgery"
    inhibitor.touch()
    place.publish("5.1.0")
    rollout = place.roll_out("5.1.0")
    wait("the deferral", lambda: device.status().get("phase") == "deferred")
    assert "surgery" in device.status()["deferred"]["message"]
    place.service.rollouts.cancel(rollout)
    wait("the end of it", lambda: device.status().get("phase") == "idle")
    inhibitor.unlink()
    assert device.serving() == "digits@1.0.0"


def test_a_newer_job_is_begun_as_soon_as_the_older_has_made_way(place: Site) -> None:
    """With a poll every five minutes, what the fleet said in between must not be forgotten."""
    device = place.device(poll_s=300)
    device.start()
    wait("the device to connect", lambda: device.status().get("connected"))
    place.publish("8.0.0")
    assert place.ended(place.roll_out("8.0.0", probation_s=0)) == "completed"
    inhibitor = device.home / "run" / "inhibit" / "surgery"
    inhibitor.touch()
    place.publish("8.1.0")
    place.roll_out("8.1.0", probation_s=0)
    wait("the deferral", lambda: device.status().get("phase") == "deferred")
    place.publish("8.2.0")
    inhibitor.unlink()
    place.roll_out("8.2.0", probation_s=0)
    wait("the newer one", lambda: device.serving() == "digits@8.2.0", 40)


def test_a_pinned_device_stays_with_its_model(calm: Calm) -> None:
    place, device = calm.place, calm.device
    assert told(device, "pin", "--reason", "exhibition")["pinned"] == "exhibition"
    place.publish("5.2.0")
    rollout = place.roll_out("5.2.0")
    place.declined(rollout, "pinned")
    assert place.job(rollout).status == "REJECTED"
    assert device.status()["pinned"] == "exhibition"
    assert told(device, "unpin")["pinned"] is None
    assert device.serving() == "digits@1.0.0"


def test_a_second_agent_on_the_same_device_is_refused(calm: Calm) -> None:
    device = calm.device
    second = Device("cam", device.home, device.port)
    second.start()
    assert second.process is not None
    assert second.process.wait(20) == 2
    assert "already" in device.log
    assert device.accuracy() >= 0.9


def test_the_supervisor_stays_small(calm: Calm) -> None:
    device = calm.device
    assert device.process is not None
    maps = Path(f"/proc/{device.process.pid}/maps").read_text()
    for heavy in ("numpy", "onnxruntime", "openvino", "PIL", "litert"):
        assert heavy not in maps, "no runtime in the supervisor"
    assert rss_mb(device.process.pid) < 80


def test_a_gate_that_does_not_hold_brings_the_old_model_back_without_a_person(place: Site) -> None:
    device = running_1(place, telemetry={"interval_s": 1})
    place.publish("1.1.0")
    gate = parse_gate("memory<1")  # MB: no model is that small
    rollout = place.roll_out("1.1.0", gates=(gate,), on_breach="revert")
    assert place.ended(rollout) == "reverted"
    wait("the old model", lambda: device.serving() == "digits@1.0.0")
    assert device.accuracy() >= 0.9
