"""Models that are bad in every way we know: each is refused or taken back, and nobody notices.

Clients ask all the while, over both sockets, on kept and on new connections.
What they may see is answers of the old model or of the new one, never an error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agent_rig import Device, Site, site
from edgepack.errors import EdgepackError
from edgepack_agent.runner.slot import Slot, open_slot
from fleet_rig import wait
from hammer import Hammer

pytestmark = pytest.mark.mosquitto
PAUSE_S = 0.02


@dataclass(frozen=True)
class Scene:
    """A site whose device runs 1.0.0 and rejects models three times as slow."""

    place: Site
    device: Device


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with site(tmp_path_factory.mktemp("bad")) as place:
        yield Scene(place, place.running_1(update={"max_p95_ratio": 3.0}))


@pytest.mark.parametrize(
    ("version", "facts", "status", "reason"),
    [
        ("2.0.0", {}, "REJECTED", "acceptance_below_limit"),  # silently wrong
        ("4.0.0", {"lie": True}, "REJECTED", "golden_mismatch"),
        ("4.1.0", {"broken": True}, "REJECTED", "model_unreadable"),
        ("4.2.0", {"ram_mb": 2**30}, "REJECTED", "ram"),
        ("4.3.0", {"ram_mb": 12}, "FAILED", "memory_above_limit"),  # takes more than it says
        ("4.4.0", {"slow": True}, "FAILED", "latency_above_limit"),
    ],
)
def test_a_bad_model_ends_with_its_reason_and_no_request_is_lost(
    scene: Scene, version: str, facts: dict[str, Any], status: str, reason: str
) -> None:
    place, device = scene.place, scene.device
    place.publish(version, **facts)
    good = device.status()["digest"]
    with Hammer(device.api, PAUSE_S) as hammer:
        hammer.wait_for(100)
        rollout = place.roll_out(version, probation_s=4)
        assert place.ended(rollout) == "paused"
        job = place.job(rollout)
        assert (job.status, job.reason) == (status, reason), job.detail
        wait("the way back", lambda: device.status().get("phase") == "idle")
        hammer.all_by(good)
    assert hammer.failures == []
    device.comes_to_serve("digits@1.0.0")


def slots(device: Device) -> list[Slot]:
    return [open_slot(device.data / "slots" / name) for name in ("a", "b")]


@pytest.mark.scale
def test_the_way_back_by_command_loses_no_request(scene: Scene) -> None:
    place, device = scene.place, scene.device
    place.publish("3.0.0")
    good = device.status()["digest"]
    with Hammer(device.api, PAUSE_S) as hammer:
        for _ in range(2):
            rollout = place.roll_out("3.0.0", probation_s=60)
            wait("the probation", lambda: device.status().get("phase") == "probation")
            (new,) = {slot.digest for slot in slots(device)} - {good}
            hammer.all_by(new)
            with pytest.raises(EdgepackError, match="cancelled_locally"):
                device.ask("rollback")
            hammer.all_by(good)
            place.declined(rollout, "cancelled_locally")
    assert hammer.failures == []
