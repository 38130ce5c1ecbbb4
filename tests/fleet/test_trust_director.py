"""The director's repositories on disk: one per device, renewed when asked, never going back."""

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from edgepack.errors import UsageError
from edgepack.trust import TargetInfo
from edgepack_fleet.adapters.director import Director
from trust_rig import START, Clock

CUSTOM = {
    "v": 1, "kind": "model", "name": "digits", "version": "1.0.0", "runtime": "onnx",
    "precision": "int8", "arch": [], "cpu_features": [], "min_runtime": "1.23", "epoch": 0,
}  # fmt: skip
MODEL = TargetInfo("models/digits/1.0.0/onnx-int8.json", "ab" * 32, 700, CUSTOM)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def director(tmp_path: Path, clock: Clock) -> Director:
    return Director(tmp_path, clock)


def said(director: Director, device: str) -> dict[str, object]:
    timestamp = read(director, device, "timestamp.json")
    version = timestamp["meta"]["snapshot.json"]["version"]
    snapshot = read(director, device, f"{version}.snapshot.json")
    version = snapshot["meta"]["targets.json"]["version"]
    return read(director, device, f"{version}.targets.json")


def read(director: Director, device: str, name: str) -> dict[str, object]:
    data = director.metadata(device, name)
    assert data is not None, name
    signed: dict[str, object] = json.loads(data)["signed"]
    return signed


def test_it_says_exactly_the_wanted_model_to_one_device(director: Director) -> None:
    director.assign("cam-1", MODEL)
    word = said(director, "cam-1")
    assert word["x-edgepack-device"] == "cam-1"
    assert word["x-edgepack-issued"] == int(START.timestamp())
    assert word["targets"] == {
        MODEL.path: {"length": 700, "hashes": {"sha256": "ab" * 32}, "custom": CUSTOM}
    }
    assert said(director, "cam-2")["targets"] == {}
    director.assign("cam-1", None)
    assert said(director, "cam-1")["targets"] == {}


def test_saying_the_same_again_signs_nothing(director: Director) -> None:
    director.assign("cam-1", MODEL)
    first = director.metadata("cam-1", "timestamp.json")
    director.assign("cam-1", MODEL)
    assert director.metadata("cam-1", "timestamp.json") == first


def test_versions_rise_within_a_second_and_over_backups(director: Director, clock: Clock) -> None:
    versions = []
    for target in (MODEL, None, MODEL):
        director.assign("cam-1", target)
        versions.append(said(director, "cam-1")["version"])
    start = int(START.timestamp())
    assert versions == [start, start + 1, start + 2]
    clock.forward(days=1)
    director.assign("cam-1", None)
    assert said(director, "cam-1")["version"] == start + 86400


def test_what_is_tired_is_renewed_when_the_device_asks(director: Director, clock: Clock) -> None:
    director.assign("cam-1", MODEL)
    for days in (1, 5, 400):
        clock.forward(days=days)
        director.keep_fresh()
        timestamp = read(director, "cam-1", "timestamp.json")
        assert str(timestamp["expires"]) > f"{clock() + timedelta(hours=12):%Y-%m-%dT%H:%M:%SZ}"
        word = said(director, "cam-1")
        assert str(word["expires"]) > f"{clock() + timedelta(days=3):%Y-%m-%dT%H:%M:%SZ}"
        assert list(word["targets"]) == [MODEL.path]  # type: ignore[call-overload]


def test_an_untired_device_costs_no_signature(director: Director, clock: Clock) -> None:
    director.assign("cam-1", MODEL)
    first = director.metadata("cam-1", "timestamp.json")
    clock.forward(hours=11)
    assert director.metadata("cam-1", "timestamp.json") == first


def test_old_files_go(director: Director, clock: Clock, tmp_path: Path) -> None:
    for hour in range(20):
        clock.forward(hours=1)
        director.assign("cam-1", MODEL if hour % 2 else None)
    assert len(list((tmp_path / "devices" / "cam-1").iterdir())) <= 9


def test_it_survives_a_restart(director: Director, clock: Clock, tmp_path: Path) -> None:
    director.assign("cam-1", MODEL)
    again = Director(tmp_path, clock)
    assert again.root() == director.root()
    assert said(again, "cam-1") == said(director, "cam-1")
    assert (tmp_path / "keys" / "root.pem").stat().st_mode & 0o777 == 0o600


def test_the_root_is_renewed_with_its_own_key(director: Director, clock: Clock) -> None:
    first = director.root()
    clock.forward(days=100)
    director.keep_fresh()
    assert director.metadata("cam-1", "2.root.json") is None
    director.keep_fresh(clock() + timedelta(days=100))
    assert director.metadata("cam-1", "2.root.json") is not None
    assert director.root() == first


def test_a_stolen_online_key_is_replaced(director: Director, clock: Clock, tmp_path: Path) -> None:
    director.assign("cam-1", MODEL)
    old = read(director, "cam-1", "1.root.json")["roles"]["targets"]["keyids"]
    for file in (tmp_path / "keys").glob("online*.pem"):
        file.rename(tmp_path / file.name)
    root_key = (tmp_path / "keys" / "root.pem").rename(tmp_path / "elsewhere.pem")
    with pytest.raises(UsageError, match="no root names it") as refused:
        Director(tmp_path, clock)
    assert refused.value.reason == "no_key"
    root_key.rename(tmp_path / "keys" / "root.pem")
    again = Director(tmp_path, clock)
    new = read(again, "cam-1", "2.root.json")["roles"]["targets"]["keyids"]
    assert set(new).isdisjoint(old)
    assert list(said(again, "cam-1")["targets"]) == [MODEL.path]
    assert again.metadata("cam-1", "3.root.json") is None
    Director(tmp_path, clock)
    assert again.metadata("cam-1", "3.root.json") is None, "a start alone makes no root"


@pytest.mark.parametrize("device", ["", "../cam-1", "cam/1", "Cam-1", "cam-1\n", "a" * 65, "."])
def test_an_odd_device_gets_nothing_and_makes_nothing(
    director: Director, tmp_path: Path, device: str
) -> None:
    assert director.metadata(device, "timestamp.json") is None
    with pytest.raises(UsageError):
        director.assign(device, None)
    assert not (tmp_path / "devices").exists()


@pytest.mark.parametrize("name", ["../cam-2/timestamp.json", "x", "targets.json", "9.targets.json"])
def test_an_odd_name_gets_nothing(director: Director, name: str) -> None:
    director.assign("cam-1", MODEL)
    assert director.metadata("cam-1", name) is None


def test_devices_ask_at_the_same_time(director: Director) -> None:
    failures: list[str] = []

    def ask(device: str) -> None:
        for _ in range(5):
            director.assign(device, MODEL)
            if list(said(director, device)["targets"]) != [MODEL.path]:  # type: ignore[call-overload]
                failures.append(device)

    threads = [threading.Thread(target=ask, args=(f"cam-{n % 3}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
