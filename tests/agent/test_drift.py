"""Drift is told when it begins and when it ends, without a link, by the device alone."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_rig import Site, site
from digits import LABELS, digits_data
from edgepack_agent.core.drift import Drift, Rule
from edgepack_agent.runner.moments import Moments
from edgepack_agent.runner.statistics import Statistics
from edgepack_targets.pipeline.baseline import Baseline, Counted, read_baseline
from edgepack_targets.pipeline.sharpness import sharpness
from fleet_rig import wait
from slots import Client

RULE = Rule(min_count=100, min_s=10, windows=2)
EVEN = Baseline(classes=dict.fromkeys("abcd", 500))
AGENT = Path(sys.executable).with_name("edgepack-agent")


def beats(*classes: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield from ({"classes": counts} for counts in classes)


def watched(*classes: dict[str, int], every_s: float = 10.0) -> list[tuple[str, bool]]:
    """Return what begins and ends to drift while beats come EVERY_S seconds."""
    drift, found = Drift(EVEN, RULE, 0.0), []
    for number, stats in enumerate(beats(*classes), start=1):
        found += [(alarm.feature, alarm.over) for alarm in drift.add(stats, number * every_s)]
    return found


QUIET, LOUD = dict.fromkeys("abcd", 50), {"a": 200}


def test_an_alarm_begins_after_windows_in_a_row_and_ends_with_a_quiet_one() -> None:
    assert watched(LOUD) == []
    assert watched(LOUD, QUIET, LOUD) == []
    assert watched(LOUD, LOUD, LOUD, LOUD) == [("classes", False)]
    assert watched(LOUD, LOUD, QUIET, QUIET) == [("classes", False), ("classes", True)]


def test_a_window_needs_values_and_time() -> None:
    few = {"a": 20}
    assert watched(*[few] * 9) == []
    assert watched(*[few] * 10) == [("classes", False)]
    assert watched(*[LOUD] * 19, every_s=1.0) == []
    assert watched(*[LOUD] * 20, every_s=1.0) == [("classes", False)]


@given(st.lists(st.dictionaries(st.sampled_from("abcdxy"), st.integers(0, 300)), max_size=30))
def test_alarms_begin_before_they_end(drawn: list[dict[str, int]]) -> None:
    told = watched(*drawn)
    assert [over for _, over in told] == [place % 2 == 1 for place in range(len(told))]


def test_values_are_held_against_the_bins_they_were_counted_in() -> None:
    known = Counted((0.0, 1.0, 2.0), (0, 300, 300, 0))
    baseline = Baseline(inputs={"image": {"mean": known}})
    drift = Drift(baseline, Rule(min_count=100, min_s=0, windows=1), 0.0)
    stats = {"values": [["inputs", "image", "mean", [0, 0, 0, 200]], ["inputs", "no", "mean", [1]]]}
    (alarm,) = drift.add(stats, 1.0)
    assert alarm.feature == "inputs.image.mean"
    other = {"confidence": {"edges": [0.5], "counts": [200, 0]}}
    assert Drift(Baseline(confidence=known), RULE, 0.0).add(other, 99.0) == []


@pytest.mark.parametrize(
    "drift",
    [
        {"classes": "many"}, {"confidence": {"edges": [1, 0], "counts": [1, 2, 3]}},
        {"inputs": {"x": {"mean": {"edges": [0.0], "counts": [1]}}}}, {"inputs": {"x": [1]}},
        {"outputs": {"x": {"mean": {"counts": [1]}}}}, {"confidence": 7},
    ],
)  # fmt: skip
def test_a_baseline_that_makes_no_sense_is_none(drift: dict[str, Any]) -> None:
    assert read_baseline(drift) is None
    assert read_baseline({"samples": 7, "dataset_digest": "x"}) == Baseline()


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (1, 3, 32, 32), (32, 32, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_picture_out_of_focus_is_less_sharp(shape: tuple[int, ...], kind: type) -> None:
    sharp = np.random.default_rng(1).integers(0, 256, shape).astype(kind)
    across = 1 if shape[0] == 1 and shape[-1] == 3 else len(shape) - 2
    blurred = (sharp.astype(np.float64) + np.roll(sharp, 1, across)) / 2
    found, less = sharpness(sharp), sharpness(blurred.astype(kind))
    assert found is not None
    assert less is not None
    assert 0 < less < 0.9 * found
    assert found == pytest.approx(85, rel=0.1), "a third of the range of even noise"
    assert sharpness(np.full(shape, 7, kind)) == 0


@pytest.mark.parametrize("shape", [(1, 10), (1, 5, 7, 9), (0, 4, 4, 3), (1, 1, 9, 3), (3,)])
def test_what_is_no_picture_has_no_sharpness(shape: tuple[int, ...]) -> None:
    assert sharpness(np.zeros(shape, np.float32)) is None


def test_a_runner_counts_sharpness_where_the_baseline_has_it_and_only_there() -> None:
    flat = np.full((1, 8, 8, 1), 5, np.uint8)
    old = {"mean": Counted((1.0,), (1, 1))}
    new = old | {"sharpness": Counted((1.0,), (1, 1)), "of the future": Counted((1.0,), (1, 1))}
    for moments, told in ((old, ["mean"]), (new, ["mean", "sharpness"])):
        statistics = Statistics()
        Moments(Baseline(inputs={"x": moments}), statistics, lambda: 1.0).count({"x": flat}, {})
        assert [name for _, _, name, _ in statistics.take()["values"]] == told


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


@pytest.mark.mosquitto
def test_a_device_tells_drift_without_a_link_and_shows_it(place: Site, tmp_path: Path) -> None:
    rule = {"min_count": 100, "min_s": 0, "windows": 2}
    test = digits_data()[1]
    baseline = {
        "samples": 1000,
        "classes": dict.fromkeys(LABELS, 100),
        "inputs": {"image": {"mean": {"edges": [-9.0, 9.0], "counts": [0, 1000, 0]}}},
    }
    place.publish("1.0.0", drift=baseline)
    nobody = {"name": "door", "source": "rtsp://127.0.0.1:1/door"}
    device = place.device(drift=rule, sources=[nobody])
    device.start()
    wait("the device to connect", lambda: device.status().get("connected"))
    assert place.ended(place.roll_out("1.0.0", probation_s=0)) == "completed"
    place.broker.kill()
    zeros = test.inputs[test.labels == 0]

    def said(*words: str | Path) -> str:
        command = [AGENT, "--config", device.config, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def watched() -> dict[str, Any]:
        return dict(device.status().get("drift") or {})

    def see(count: int) -> None:
        with Client(("127.0.0.1", device.port)) as client:
            for number in range(count):
                client.infer(zeros[number % len(zeros)])

    see(40)
    wait("the values", lambda: watched().get("filling", {}).get("values") == 40)
    assert said("drift", "--svg", tmp_path / "none").startswith(
        "no window is full yet: 40 of 100 values, "
    )
    see(70)
    wait("the first window", lambda: watched()["features"])
    assert "far from as built, 1 of 2 windows in a row: PSI" in said("drift")
    status = said("status")
    assert re.search(r"^camera +door: \w[\w ]+, no frame yet$", status, re.MULTILINE)
    assert "alarm " not in status
    see(110)
    wait("the alarm", lambda: watched()["alarms"])
    assert "alarm      classes drifts" in said("status")
    told = json.loads(said("drift", "--svg", tmp_path / "seen", "--json"))
    assert told["alarms"] == ["classes"]
    assert told["features"]["classes"]["psi"] > 0.1
    assert [ET.parse(path).getroot().tag for path in told["pictures"]]
    place.broker.start()
    (event,) = place.told("drift")
    assert event["reason"] == "classes"
    assert np.isfinite(event["detail"]["psi"])
