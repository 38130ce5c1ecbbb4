"""A stolen broker cannot set a device; a stolen director can, and only what is in the list."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.settings import SETTINGS, Settings
from edgepack_agent.adapters.trust import TrustClient, TrustError
from edgepack_agent.config import Config
from edgepack_agent.steering import Steering
from trust_rig import World

LEVEL = "telemetry.level"
OFF = Settings(version=2, values={LEVEL: "off"})
HEALTH = Settings(version=3, values={LEVEL: "health"})


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    found.release()
    found.director.configure("cam-1", OFF)
    return found


def reason(action: Callable[[], Any]) -> str:
    with pytest.raises(TrustError) as caught:
        action()
    return caught.value.reason


def test_the_directors_word_is_read_and_renewed_with_the_rest(world: World) -> None:
    device = world.device()
    assert device.settings() == OFF
    world.clock.forward(days=6)
    assert device.settings() == OFF
    world.director.configure("cam-1", HEALTH)
    assert device.settings() == HEALTH
    assert world.device("cam-9").settings() is None


def test_a_broker_changes_a_value_on_the_way(world: World) -> None:
    def tamper(_repo: str, name: str, data: bytes | None) -> bytes | None:
        return data and data.replace(b'"off"', b'"all"') if "targets" in name else data

    world.tamper = tamper
    assert reason(world.device().settings) in {"bad_signature", "mismatch"}


def test_a_broker_replays_what_was_said_before(world: World) -> None:
    device = world.device()
    assert device.settings() == OFF
    before: dict[str, bytes | None] = {}

    def record(repo: str, name: str, data: bytes | None) -> bytes | None:
        before[f"{repo}/{name}"] = data
        return data

    world.tamper = record
    assert world.device("cam-1").settings() == OFF
    world.tamper = lambda _repo, _name, data: data
    world.clock.forward(minutes=1)
    world.director.configure("cam-1", HEALTH)
    assert device.settings() == HEALTH
    world.tamper = lambda repo, name, data: before.get(f"{repo}/{name}", data)
    assert reason(device.settings) == "rollback"


def test_a_broker_serves_what_is_said_to_another_device(world: World) -> None:
    world.director.configure("cam-2", HEALTH)
    served = world.director.metadata
    world.tamper = lambda repo, name, data: served("cam-2", name) if repo == "director" else data
    assert reason(world.device("cam-9").settings) == "wrong_device"


@pytest.mark.parametrize(
    "values",
    [{"broker": "evil:1"}, {"remote.settings": True}, {"snapshots.publish": True}, {"x" * 5000: 1}],
)
def test_a_stolen_director_sets_nothing_beside_the_list(
    world: World, tmp_path: Path, values: dict[str, Any]
) -> None:
    world.director_says("cam-1", **{SETTINGS: {"version": 9, "values": values}})
    found = world.device().settings()
    steering = Steering(Config(data_dir=tmp_path))
    told = steering.take(found)
    assert told
    assert (told.reason, told.detail["status"]) == ("bad_settings", "rejected")
    assert steering.config == Config(data_dir=tmp_path)


@pytest.mark.parametrize("said", ["off", [], {"version": -1}, {"values": {}}, {"version": "9"}])
def test_a_stolen_director_says_what_is_no_settings(world: World, said: Any) -> None:
    world.director_says("cam-1", **{SETTINGS: said})
    device: TrustClient = world.device()
    with pytest.raises(Exception, match="settings cannot be read") as caught:
        device.settings()
    assert getattr(caught.value, "reason", "") == "bad_metadata"
