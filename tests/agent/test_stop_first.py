"""Boxes without memory for two models: the old one ends before the new one is loaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_rig import Device, Site, runners, site
from fleet_rig import wait
from hammer import Beside, Hammer

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


class Census(Beside):
    """Counts the runner processes of a device, again and again."""

    def __init__(self, device: Device) -> None:
        super().__init__([self._count])
        self._device = device
        self.pids: set[int] = set()
        self.most = 0

    def _count(self) -> None:
        while not self._stop.wait(0.005):
            found = runners(self._device)
            self.pids |= set(found)
            self.most = max(self.most, len(found))


def test_there_are_never_two_models_in_memory_and_clients_wait(place: Site) -> None:
    device = place.running_1(update={"swap": "stop_first", "shadow": {"min_agreement": 0.9}})
    place.publish("3.0.0")
    place.publish("4.0.0", lie=True)
    with Census(device) as census, Hammer(device.api, 0.01) as hammer:
        hammer.wait_for(10)
        good = place.roll_out("3.0.0")
        assert place.ended(good) == "completed"
        assert device.serving() == "digits@3.0.0"
        hammer.all_by(device.status()["digest"])
        bad = place.roll_out("4.0.0")
        assert place.ended(bad) == "paused"
        wait("the model before", lambda: device.serving() == "digits@3.0.0")
        hammer.all_by(device.status()["digest"])
    assert hammer.failures == [], "who asked in between waited"
    assert len(census.pids) == 4, "two swaps and a way back, from one runner"
    assert census.most == 1
    assert place.job(good).detail["shadow"]["reason"] == "stop_first"
    assert place.job(bad).reason == "golden_mismatch"
    assert len(hammer.first) == 2, "the bad model answered nobody"


@pytest.mark.scale
def test_a_restart_in_the_middle_ends_with_one_model(place: Site) -> None:
    device = place.running_1(update={"swap": "stop_first"})
    place.publish("3.0.0")
    rollout = place.roll_out("3.0.0", probation_s=3)
    wait("the probation", lambda: device.status().get("phase") == "probation")
    device.kill()
    device.start()
    assert place.ended(rollout) == "completed"
    wait("the new model", lambda: device.serving() == "digits@3.0.0")
    assert len(runners(device)) == 1
