"""A hot device looks at fewer frames: never more than wanted, never none, and all when cool."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_agent.core.heat import FLOOR_FPS, HeatRule, allowed, deepest, halvings
from edgepack_agent.runner.cooling import EVERY_S, Cooling
from edgepack_agent.runner.kernel import temperature_c
from edgepack_agent.runner.sources import Feed, Results
from edgepack_agent.runner.statistics import Statistics
from edgepack_agent.runner.wire import Source
from edgepack_agent.settings import load_config
from fleet_rig import wait

RULE = HeatRule(85, 75)
FPS = st.none() | st.floats(0.01, 240)
DEGREES = st.none() | st.floats(-40, 150)


@given(FPS, st.integers(0, 20))
def test_a_camera_has_never_more_than_it_wants_and_never_less_than_the_floor(
    fps: float | None, steps: int
) -> None:
    now, next_ = allowed(fps, steps), allowed(fps, steps + 1)
    if fps is not None:
        assert now is not None
        assert min(fps, FLOOR_FPS) <= now <= fps
    assert next_ is not None
    assert next_ > 0
    assert now is None or next_ <= now
    assert allowed(fps, 0) == fps


@given(st.lists(FPS, max_size=5))
def test_no_step_is_without_effect(wanted: list[float | None]) -> None:
    most = deepest(wanted)
    assert all(allowed(fps, most + 1) == allowed(fps, max(most, 1)) for fps in wanted)
    assert most == 0 or any(allowed(fps, most) != allowed(fps, most - 1) for fps in wanted)


@given(st.integers(0, 12), st.integers(0, 8), DEGREES, DEGREES, st.booleans())
def test_hotter_is_never_faster_and_a_step_is_one(
    steps: int, most: int, one: float | None, other: float | None, throttled: bool
) -> None:
    after = halvings(steps, most, RULE, one, throttled=throttled)
    assert 0 <= after <= most
    assert abs(after - min(steps, most)) <= 1
    assert after <= halvings(steps, most, RULE, one, throttled=True)
    if one is not None and other is not None and one <= other:
        assert after <= halvings(steps, most, RULE, other, throttled=throttled)
    if not throttled and (one is None or 75 <= one < 85):
        assert after == min(steps, most)


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    (tmp_path / "thermal_zone0").mkdir()
    return tmp_path / "thermal_zone0" / "temp"


def feed(*sources: dict[str, Any]) -> Feed:
    def never(_: Any) -> Any:
        raise AssertionError

    found = Feed(never, never, Results(None), Statistics())
    found.replace(Source(**source) for source in sources)
    return found


def test_cameras_slow_down_step_by_step_and_come_back(zone: Path) -> None:
    now = 0.0
    cameras = feed(
        {"name": "fast", "source": "test:pattern", "fps": 8},
        {"name": "slow", "source": "test:pattern", "fps": 0.5},
        {"name": "free", "source": "test:pattern"},
        {"name": "inbox", "source": "dir:/nowhere"},
    )
    cooling = Cooling(cameras, RULE, lambda: temperature_c(zone.parents[1]), lambda: now)

    def after(degrees: float) -> list[float | None]:
        nonlocal now
        zone.write_text(f"{degrees * 1000:.0f}")
        cooling.tick()
        cooling.tick()  # nothing more until it is time
        now += EVERY_S
        return [camera.describe()["fps_limit"] for camera in cameras.cameras]

    assert after(84) == [8, 0.5, None]
    assert after(85) == [4, 0.5, 8]
    assert after(90) == [2, 0.5, 4]
    assert after(80) == [2, 0.5, 4]
    assert [camera.describe()["slowed_down"] for camera in cameras.cameras] == [True] * 3
    assert after(90) == [1, 0.5, 2]
    assert after(90) == after(90) == [1, 0.5, 1]
    assert after(74) == [1, 0.5, 2]
    zone.unlink()
    cooling.tick()
    now += EVERY_S
    assert cameras.halvings == 3
    cameras.replace([Source(name="new", source="test:pattern", fps=8)])
    assert cameras.cameras[0].describe()["fps_limit"] == 1
    assert [after(60) for _ in range(4)] == [[2], [4], [8], [8]]


def test_a_slowed_camera_skips_frames() -> None:
    cameras = feed({"name": "door", "source": "test:pattern"})
    (camera,) = cameras.cameras
    cameras.slow_down(4)
    camera.start()
    try:
        wait("frames", lambda: camera.describe()["frames"] >= 2)
        assert camera.describe()["skipped"] >= 5
    finally:
        camera.stop()


def test_without_a_rule_they_are_left_alone(tmp_path: Path) -> None:
    cameras = feed({"name": "door", "source": "test:pattern", "fps": 8})
    Cooling(cameras, None, lambda: 150.0).tick()
    assert cameras.halvings == 0
    path = tmp_path / "agent.yaml"
    path.write_text("heat: {limit_c: null}")
    assert load_config(path).heat.rule() is None
    path.write_text("heat: {limit_c: 70}")
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert "resume_c 75 is not below limit_c 70" in caught.value.why


def test_a_machine_that_slows_itself_down_is_hot_whatever_it_says(zone: Path) -> None:
    now = 0.0
    cameras = feed({"name": "fast", "source": "test:pattern", "fps": 8})
    cooling = Cooling(cameras, RULE, lambda: temperature_c(zone.parents[1]), lambda: now)
    zone.write_text("60000")
    cooling.tick(True)
    cooling.tick(True)
    assert cameras.halvings == 1
    now += EVERY_S
    cooling.tick(False)
    assert cameras.halvings == 2, "it was slowed down since the last look"
    now += EVERY_S
    cooling.tick(None)
    assert cameras.halvings == 1
    zone.unlink()
    now += EVERY_S
    cooling.tick(True)
    assert cameras.halvings == 1, "without a temperature there would be no way back"
