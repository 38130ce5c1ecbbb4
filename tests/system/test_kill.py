"""Kill -9 of each part in the middle of a rollout: everything resumes and finishes."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.harness import Site, site, wait

pytestmark = [pytest.mark.mosquitto, pytest.mark.system, pytest.mark.scale]


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, releases: dict[str, list[Path]]
) -> Iterator[Site]:
    """A site whose one device runs 1.0.0; what is killed in one test is there in the next."""
    with site(tmp_path_factory.mktemp("kill")) as place:
        place.edgepack("fleet", "groups", "create", "lab")
        place.publish(releases["1.0.0"])
        place.publish(releases["3.0.0"])
        place.add_agent("cam", "onnx")
        assert place.ended(place.roll_out("digits@1.0.0"))["state"] == "completed"
        yield place


@contextlib.contextmanager
def rolling(place: Site) -> Iterator[str]:
    """Yield a rollout of the release that the device does not have; it must end well."""
    version = {"1.0.0": "3.0.0", "3.0.0": "1.0.0"}[place.version("cam")]
    rollout = place.roll_out(f"digits@{version}", probation=4)
    yield rollout
    ended = place.ended(rollout, 120)
    assert ended["state"] == "completed", ended
    assert place.version("cam") == version
    assert place.infer("cam") >= 0.9


def middle(place: Site, rollout: str) -> None:
    """Wait until the device has begun the job of ROLLOUT and not ended it."""

    def begun() -> bool:
        status = {d["status"] for d in place.asked("rollouts", rollout)["devices"]}
        assert "SUCCEEDED" not in status, "too late: the rollout is over"
        return "IN_PROGRESS" in status

    wait("the device to begin", begun)


def test_the_agent_is_killed(running: Site) -> None:
    with rolling(running) as rollout:
        middle(running, rollout)
        running.kill("cam")
        running.restart("cam")


def test_the_broker_is_killed(running: Site) -> None:
    with rolling(running) as rollout:
        middle(running, rollout)
        running.kill("broker")
        running.restart("broker")


def test_the_fleet_is_killed(running: Site) -> None:
    with rolling(running) as rollout:
        middle(running, rollout)
        running.kill("fleet")
        running.restart("fleet")
        running.wait_for_fleet()


def test_the_runner_of_the_old_model_is_killed(running: Site) -> None:
    (old,) = runners(running)
    with rolling(running) as rollout:
        middle(running, rollout)
        os.kill(old, signal.SIGKILL)


def test_the_runner_of_the_new_model_is_killed(running: Site) -> None:
    before = runners(running)
    with rolling(running):
        (new,) = wait("the new runner", lambda: set(runners(running)) - set(before))
        os.kill(new, signal.SIGKILL)


def runners(place: Site) -> list[int]:
    """Return the processes of the agent's models."""
    agent = place.processes["cam"].pid
    tasks = Path(f"/proc/{agent}/task").iterdir()
    children = [pid for task in tasks for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in children if b"edgepack_agent.runner" in _command(pid)]


def _command(pid: str) -> bytes:
    with contextlib.suppress(OSError):  # it has ended since
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
