"""A device follows the settings of its fleet: whole or not at all, never against its own files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rig import Device, Site, site
from edgepack.errors import UsageError
from edgepack.settings import Settings
from edgepack_agent.adapters.kept_settings import NAME, Kept, keep, kept
from edgepack_agent.config import Config, RemoteConfig, TelemetryConfig, overlaid
from edgepack_agent.steering import Steering
from edgepack_fleet.adapters.request_tables import DeviceSettingsRow
from fleet_rig import wait

LEVEL, MAX, MIN = "telemetry.level", "transfer.max_kbps", "transfer.min_kbps"


def steering(home: Path, said: tuple[str, ...] = (), **facts: Any) -> Steering:
    return Steering(Config(data_dir=home, **facts), said)


def test_settings_hold_are_kept_and_are_told_once(tmp_path: Path) -> None:
    found, heard = steering(tmp_path), list[Config]()
    found.then(heard.append)
    found.told(3)
    assert found.due()
    assert not found.due(), "the director is asked once for each time it is said"
    told = found.take(Settings(version=3, values={LEVEL: "off", MAX: 500}))
    assert told
    assert (told.type, told.reason) == ("settings", "")
    assert told.detail == {"version": 3, "status": "applied", "message": "", "pinned": []}
    assert [c.telemetry.level for c in heard] == ["off"]
    found.told(3)
    assert not found.due()
    assert found.take(Settings(version=3)) is None
    again = steering(tmp_path)
    assert (again.config.telemetry.level, again.config.transfer.max_kbps) == ("off", 500)
    assert again.take(Settings(version=4))
    assert again.config == Config(data_dir=tmp_path), "unset: the device decides again"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({MAX: 5}, "bad_settings"),
        ({LEVEL: "all"}, "bad_settings"),
        ({"broker": "evil:1"}, "bad_settings"),
        (
            {"update.windows": [{"from": "22:00", "to": "04:00", "zone": "No/Where"}]},
            "bad_settings",
        ),
    ],
)
def test_what_does_not_fit_is_rejected_and_the_old_stays(
    tmp_path: Path, values: dict[str, Any], reason: str
) -> None:
    found = steering(tmp_path)
    found.take(Settings(version=1, values={LEVEL: "health"}))
    told = found.take(Settings(version=2, values=values))
    assert told
    assert (told.reason, told.detail["status"]) == (reason, "rejected")
    assert told.detail["message"]
    assert found.config.telemetry.level == "health"
    assert found.describe() == {"version": 1, "values": {LEVEL: "health"}, "pinned": []}
    assert steering(tmp_path).config.telemetry.level == "health"
    assert found.take(Settings(version=2, values=values)) is None, "it is not judged again"


def test_what_files_here_say_goes_first(tmp_path: Path) -> None:
    local = {"telemetry": TelemetryConfig(level="health")}
    found = steering(tmp_path, (LEVEL,), **local)
    told = found.take(Settings(version=1, values={LEVEL: "metrics", MAX: 500}))
    assert told
    assert told.detail["pinned"] == [LEVEL]
    assert (found.config.telemetry.level, found.config.transfer.max_kbps) == ("health", 500)
    closed = steering(tmp_path / "b", remote=RemoteConfig(settings=False))
    told = closed.take(Settings(version=1, values={LEVEL: "off"}))
    assert told
    assert told.reason == "not_allowed"


def test_what_is_kept_and_no_longer_fits_does_not_hold(tmp_path: Path) -> None:
    keep(tmp_path, Kept(judged=2, applied=2, values={MAX: 5}))
    assert steering(tmp_path).config == Config(data_dir=tmp_path)
    (tmp_path / NAME).write_bytes(b"\x00torn")
    assert kept(tmp_path) == Kept()
    assert steering(tmp_path).config == Config(data_dir=tmp_path)


def test_a_disk_that_is_full_leaves_what_was(tmp_path: Path, monkeypatch: Any) -> None:
    found = steering(tmp_path)
    found.take(Settings(version=1, values={LEVEL: "health"}))
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match=NAME):
        found.take(Settings(version=2, values={LEVEL: "off"}))
    assert found.config.telemetry.level == "health"


FITTING = st.fixed_dictionaries(
    {},
    optional={
        LEVEL: st.sampled_from(["off", "health", "metrics"]),
        "poll_s": st.floats(1, 86400),
        MAX: st.none() | st.floats(1, 1e6),
        MIN: st.floats(0, 1e6),
        "update.min_battery": st.floats(0, 100),
        "log_level": st.sampled_from(["debug", "error"]),
    },
)


@given(FITTING, st.sets(st.sampled_from([LEVEL, MAX, MIN, "poll_s", "log_level"])))
def test_only_what_is_set_and_not_pinned_changes(values: dict[str, Any], said: set[str]) -> None:
    local = Config(telemetry=TelemetryConfig(level="health"))
    try:
        found = overlaid(local, values, said)
    except UsageError:
        return
    for key in (LEVEL, MAX, MIN, "poll_s", "log_level", "update.min_battery", "threads"):
        before: Any = local
        after: Any = found
        for step in key.split("."):
            before, after = getattr(before, step), getattr(after, step)
        assert after == (values[key] if key in values and key not in said else before)


# -- with a real fleet


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


def standing(place: Site, version: int, status: str) -> DeviceSettingsRow:
    def probe() -> DeviceSettingsRow | None:
        with place.service.database.read() as session:
            row = session.get(DeviceSettingsRow, "cam")
        done = row is not None and row.reported >= version and row.status == status
        return row if done else None

    return wait(f"settings to be {status}", probe, 60)


def change(place: Site, **values: Any) -> int:
    """Set VALUES on the device, and return the version the director then says."""
    named = {name.replace("__", "."): value for name, value in values.items()}
    place.service.steering.change("device", "cam", named)
    place.service.poke()

    def probe() -> int:
        with place.service.database.read() as session:
            row = session.get(DeviceSettingsRow, "cam")
        said = row is not None and named.items() <= row.wanted.items()
        return row.version if row and said else 0

    return wait("the director to say it", probe, 60)


@pytest.mark.mosquitto
def test_a_device_is_set_while_it_serves_and_remembers_it(place: Site) -> None:
    device: Device = place.running_1(sources=[{"name": "door", "source": "test:pattern"}])
    process, runner = device.process, device.status()["runner"]["pid"]
    version = change(place, telemetry__max_kb_per_day=300, poll_s=60, cameras__max_fps=2)
    row = standing(place, version, "applied")
    assert row.pinned == ["poll_s"], "the device's file names it"
    status = device.status()
    assert status["settings"]["version"] == version
    assert status["telemetry"]["max_kb_per_day"] == 300
    wait(
        "the camera to be slower", lambda: device.status()["cameras"]["door"]["fps_limit"] == 2, 60
    )
    assert (device.process, status["runner"]["pid"]) == (process, runner), "nothing was restarted"
    bad = change(place, transfer__max_kbps=2)
    row = standing(place, bad, "rejected")
    assert row.reason == "bad_settings"
    assert "min_kbps" in row.message
    assert device.status()["settings"]["version"] == version
    device.kill()
    device.start()
    wait("the device to be up", lambda: device.status().get("connected"), 60)
    assert device.status()["telemetry"]["max_kb_per_day"] == 300
    assert json.loads((device.data / NAME).read_text())["judged"] == bad
