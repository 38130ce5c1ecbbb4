"""The score of a passed exam reaches the fleet; its gate may want more than the line does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_rig import Site, site
from edgepack_fleet.core.gates import parse_gate

pytestmark = pytest.mark.mosquitto


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as found:
        yield found


@pytest.mark.scale
def test_a_gate_sees_the_score_of_a_model_that_passed(place: Site) -> None:
    device = place.running_1()
    place.publish("1.1.0")
    passed = parse_gate("exam>=0.9,on_missing=fail")
    rollout = place.roll_out("1.1.0", gates=(passed,), on_breach="revert")
    assert place.ended(rollout) == "completed"
    job = place.job(rollout)
    assert job.detail["exam"]["min_score"] == 0.9
    assert 0.9 <= job.detail["exam"]["score"] < 1.0
    place.publish("1.2.0", padding=1000)
    perfect = parse_gate("exam>=1.0,on_missing=fail")
    rollout = place.roll_out("1.2.0", gates=(perfect,), on_breach="revert")
    assert place.ended(rollout) == "reverted"
    assert place.job(rollout).kind == "revert"
    device.comes_to_serve("digits@1.1.0")
