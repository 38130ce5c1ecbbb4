"""A disk that is full, read-only or failing at any step of an update, and a clock that jumps.

The kernel's answers are real or put in by strace: the N-th call of a kind fails. Inference goes
on, the job ends with its reason, and on a healthy disk the next one works.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_rig import ENDED, Device, Site, site
from fleet_rig import wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.strace, pytest.mark.soak]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.fixture(scope="module")
def device(place: Site) -> Device:
    """A device that runs 1.0.0 and was stopped."""
    place.publish("1.0.0")
    found = place.device()
    found.start()
    wait("the device to connect", lambda: found.status().get("connected"))
    assert place.ended(place.roll_out("1.0.0", probation_s=0)) == "completed"
    assert found.stop() == 0
    return found


def failing(call: str, error: str, when: str) -> list[str]:
    """Return words that let CALL fail with ERROR, from the one that WHEN says."""
    inject = f"--inject={call}:error={error}:when={when}"
    return ["strace", "-D", "-f", "-qq", "-o", os.devnull, f"--trace={call}", inject]


def update_under(place: Site, device: Device, version: str, under: list[str]) -> tuple[str, str]:
    """Run an update with UNDER watching the agent; return how the job ended."""
    padding = 200_000  # another model, so that there is something to fetch
    place.publish(version, padding=padding)
    device.under = under
    device.start()
    wait("an answer", device.serving)
    rollout = place.roll_out(version, probation_s=0)
    place.ended(rollout)
    found = place.job(rollout)
    assert device.accuracy() >= 0.9
    device.kill()
    return found.status, found.reason


def works_again(place: Site, device: Device, version: str) -> None:
    device.under = []
    device.start()
    place.publish(version, padding=200_000)
    rollout = place.roll_out(version, probation_s=0)
    assert place.ended(rollout) == "completed"
    wait("the new model", lambda: device.serving() == f"digits@{version}")
    assert device.accuracy() >= 0.9
    left = [p.name for p in device.data.rglob("*") if p.name.startswith((".", "tmp"))]
    assert not left
    assert not list((device.data / "parts").iterdir())
    assert device.stop() == 0


FAULTS = {
    "no room for a blob": ("fallocate", "ENOSPC", "1+", {("FAILED", "disk_full")}),
    "no room for a link": ("link", "ENOSPC", "1+", {("FAILED", "disk_full")}),
    "a medium that fails": ("fsync", "EIO", "3+", {("FAILED", "storage")}),
    "no room for a directory": ("mkdir", "ENOSPC", "2+", {("FAILED", "disk_full")}),
    "names that cannot change": ("rename", "EROFS", "1+", {("FAILED", "storage")}),
    "one failure of many": ("fsync", "EIO", "12", {("FAILED", "storage"), ("SUCCEEDED", "")}),
    "one write that finds no room": ("pwrite64", "ENOSPC", "60", {
        ("FAILED", "disk_full"), ("FAILED", "storage"), ("SUCCEEDED", ""),
    }),
}  # fmt: skip
_versions = iter(range(100))


@pytest.mark.parametrize(("call", "error", "when", "allowed"), FAULTS.values(), ids=FAULTS.keys())
def test_a_failing_disk_ends_the_job_and_nothing_else(
    place: Site,
    device: Device,
    call: str,
    error: str,
    when: str,
    allowed: set[tuple[str, str]],
) -> None:
    version = f"5.{next(_versions)}.0"
    assert update_under(place, device, version, failing(call, error, when)) in allowed
    works_again(place, device, f"5.{next(_versions)}.0")


REMOUNT = """
import os, subprocess, sys
data, command = sys.argv[1], sys.argv[2:]
subprocess.run(["mount", "--bind", data, data], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", data], check=True)
os.execv(command[0], command)
"""


def test_on_a_read_only_disk_the_model_answers(place: Site, device: Device) -> None:
    words = ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", REMOUNT]
    tried = subprocess.run(
        [*words, str(device.data), "/bin/true"], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip("a disk cannot be made read-only here (needs CAP_SYS_ADMIN)")
    device.under = [*words, str(device.data)]
    device.start()
    assert device.process is not None
    code = device.process.wait(20)
    # It cannot even take its lock: it says so and ends, and the service manager tries again.
    assert code == 2
    assert "unwritable" in device.log or "Read-only" in device.log
    works_again(place, device, f"5.{next(_versions)}.0")


SHIM = Path(__file__).parents[1] / "jumping_clock.py"


def set_clock(clock: Path, days: int) -> None:
    part = clock.with_suffix(".new")
    part.write_text(str(days * 86400))
    part.replace(clock)


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_stops_updates_until_it_is_right(
    place: Site, device: Device, tmp_path: Path, days: int
) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    device.under = [sys.executable, str(SHIM), str(clock)]
    device.start()
    wait("the device to connect", lambda: device.status().get("connected"))
    version = f"5.{next(_versions)}.0"
    place.publish(version, padding=200_000)
    set_clock(clock, days)
    rollout = place.roll_out(version, probation_s=0)

    def stopped() -> bool:
        ended = place.state(rollout) in ENDED
        return ended or device.status().get("phase") == "deferred"

    wait("the update to stop", stopped, 60)
    assert device.accuracy() >= 0.9
    set_clock(clock, 0)
    place.ended(rollout, 30)  # it notices at once that somebody has set the clock
    job = place.job(rollout)
    assert job.status == "SUCCEEDED" or job.reason in {"clock", "metadata_expired"}
    assert device.accuracy() >= 0.9
    assert device.stop() == 0
    works_again(place, device, f"5.{next(_versions)}.0")
