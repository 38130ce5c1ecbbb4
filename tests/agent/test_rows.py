"""Plain `status` names every camera and every standing alarm, and nothing that is not there."""

from pathlib import Path
from typing import Any

from edgepack_agent.cli.rows import rows
from edgepack_agent.core.drift import Rule
from edgepack_agent.core.state import Model, Slot
from edgepack_agent.drifting import Drifting
from edgepack_agent.runner.cameras import Camera
from edgepack_agent.runner.wire import Source
from edgepack_targets.pipeline.baseline import Baseline
from fleet_rig import wait

QUIET: dict[str, Any] = {
    "device": "cam", "group": "lab", "connected": True, "bundle": "digits@1.0.0",
    "serving": "digits@1.0.0", "trouble": "", "previous": None, "phase": "idle", "job": None,
    "deferred": None, "pinned": None, "lock": None, "outbox": {"rows": 0}, "rss_mb": 40.0,
    "cameras": {}, "folders": {}, "drift": None, "certificate": {"trouble": None},
}  # fmt: skip


def told(kind: str, **facts: Any) -> list[str]:
    return [value for name, value in rows(QUIET | facts) if name == kind]


def test_without_cameras_and_alarms_there_is_no_line_of_them() -> None:
    assert told("camera") == told("alarm") == []
    assert told("serving") == ["digits@1.0.0"]


def test_every_camera_has_a_line_with_its_state(tmp_path: Path) -> None:
    door = Camera(Source(name="door", source="test:pattern"), lambda _reason: None)
    hall = Camera(Source(name="hall", source=f"file:{tmp_path / 'none'}"), lambda _reason: None)
    door.start()
    hall.start()
    wait("frames", lambda: door.describe()["frames"] > 3)
    wait("the other to be missed", lambda: hall.describe()["reason"] == "missing")
    door.halvings = 1
    how = {"door": door.describe(), "hall": hall.describe()}
    door.stop()
    hall.stop()
    first, second = told("camera", cameras=how)
    assert first.startswith("door: online, ")
    assert f"{how['door']['fps']:g} frames/s, last frame " in first
    assert "slowed down" in first
    assert second == "hall: missing, no frame yet"


def test_every_folder_has_a_line() -> None:
    how = {"kind": "dir", "online": True, "reason": "", "pictures": 3, "failed": 0}
    away = how | {"online": False, "reason": "missing", "failed": 1}
    assert told("folder", folders={"inbox": how, "stick": away}) == [
        "inbox: 3 pictures seen",
        "stick: missing, 3 pictures seen, 1 could not be used",
    ]


def test_every_standing_alarm_has_a_line() -> None:
    even = Baseline(classes=dict.fromkeys("abcd", 500))
    rule = Rule(min_count=100, min_s=0, windows=1)
    watch = Drifting(lambda _slot: even, rule, lambda _told: None, lambda: 0.0)
    slot = Slot("a", Model("digits@1.0.0", "digits/1", "1" * 64, 1))
    watch.beat(slot, {"stats": {}})
    assert told("alarm", drift=watch.describe()) == []
    watch.beat(slot, {"stats": {"classes": {"a": 200}}})
    assert told("alarm", drift=watch.describe()) == ["classes drifts: edgepack-agent drift"]
    late = {"trouble": {"reason": "unknown_device", "why": "", "fix": ""}}
    first, second = told("alarm", trouble="exit code 1", certificate=late)
    assert first == "digits@1.0.0 does not serve: exit code 1"
    assert "unknown_device" in second
    assert told("alarm", serving=None, trouble="exit code 1") == [], "the line `serving` says it"
