"""How waves are shown: only one that ended well is done."""

from typing import Any

import pytest

from edgepack_fleet.core.standing import standing

WAVE = {"passed": False, "current": False, "size": 2, "done": 0, "failed": 0, "begun": 0}
GOOD = {"done": 2, "begun": 2}
HURT = {"done": 1, "failed": 1, "begun": 2}
LOST = {"failed": 2, "begun": 2}


@pytest.mark.parametrize(
    ("state", "facts", "stands"),
    [
        ("draft", {"current": True}, "next"),
        ("running", {"current": True}, "now"),
        ("running", {}, "next"),
        ("running", GOOD | {"passed": True}, "done"),
        ("running", HURT | {"passed": True}, "hurt"),
        ("running", LOST | {"passed": True}, "lost"),
        ("paused", LOST | {"current": True}, "now"),
        ("paused", {"current": True}, "next"),
        ("completed", GOOD | {"current": True}, "done"),
        ("completed", LOST, "lost"),
        ("completed", {"size": 0}, "nobody"),
        ("running", {"size": 0, "passed": True}, "nobody"),
        ("running", {"size": 0}, "nobody"),
        ("running", {"size": 0, "current": True}, "now"),
        ("reverting", {"begun": True, "current": True}, "back"),
        ("reverted", HURT | {"passed": True}, "back"),
        ("reverted", LOST | {"passed": True}, "lost"),
        ("reverted", {}, "never"),
        ("cancelled", GOOD | {"passed": True}, "done"),
        ("cancelled", LOST | {"passed": True}, "lost"),
        ("cancelled", HURT | {"current": True}, "stopped"),
        ("cancelled", GOOD | {"current": True}, "done"),
        ("cancelled", GOOD | {"passed": True, "back": True}, "back"),
        ("cancelled", {"current": True}, "never"),
        ("cancelled", {}, "never"),
    ],
)
def test_how_a_wave_stands(state: str, facts: dict[str, Any], stands: str) -> None:
    assert standing(state, **(WAVE | facts)) == stands
