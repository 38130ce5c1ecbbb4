"""What has happened, in words; and what a gate would say before its wave has finished."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core import timeline
from edgepack_fleet.core.gates import gauge, parse_gate
from edgepack_fleet.core.happenings import Happening, grouped, of_change, of_entry
from edgepack_fleet.core.model import Device, Member, Policy, Rollout
from edgepack_fleet.core.waves import parse_waves

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("bundle", "reason", "group", "release", "state", "status", "detail")
BODIES = st.dictionaries(st.sampled_from(FIELDS), ANYTHING)


@given(st.text(), BODIES)
def test_whatever_has_changed_becomes_a_sentence(kind: str, body: dict[str, Any]) -> None:
    told = of_change(1.0, f"edgepack.device.{kind}", "devices/x", body)
    assert isinstance(told.text, str)
    assert len(told.text) < 1000
    # What a device calls itself is no place to put other words in.
    named = {"bundle": "{state}", "state": "x"}
    assert of_change(1, "edgepack.device.bundle", "", named).text == "Reports {state}"


ENTRIES: list[tuple[timeline.Kind, dict[str, Any], tuple[str, str, str]]] = [
    ("event", {"type": "activated", "verified": True}, ("model", "good", "")),
    ("event", {"type": "rejected", "verified": False}, ("model", "bad", "")),
    ("event", {"type": "of its own", "verified": False}, ("device", "plain", "")),
    ("connection", {"online": False}, ("link", "warn", "")),
    ("job", {"status": "FAILED", "rollout": "r1"}, ("update", "bad", "rollouts/r1")),
    ("job", {"status": "QUEUED", "rollout": "r1"}, ("update", "plain", "rollouts/r1")),
    ("audit", {"action": "revoke_device"}, ("people", "plain", "")),
]


@pytest.mark.parametrize(("kind", "facts", "look"), ENTRIES)
def test_an_entry_of_a_timeline_has_a_kind_and_a_tone(
    kind: timeline.Kind, facts: dict[str, Any], look: tuple[str, str, str]
) -> None:
    one = of_entry(timeline.Entry((9.0, 0, "", 1), kind, "It did.", facts))
    assert (one.kind, one.tone, one.subject) == look
    assert (one.at, one.text, one.signed) == (9.0, "It did.", bool(facts.get("verified")))


def test_what_says_the_same_is_one_line() -> None:
    on = [(f"devices/{n}", Happening(1.0, "link", "plain", "Connected")) for n in "abca"]
    off = ("devices/d", Happening(1.0, "link", "warn", "Connection ended"))
    lines = grouped([*on, off, on[0]])
    assert [line.text for line in lines] == [
        "a and 2 more: connected", "d: connection ended", "a: connected",
    ]  # fmt: skip


def member(name: str, status: Any, **measured: float) -> Member:
    return Member(Device(name, "lab"), wave=0, status=status, measured=measured)


def test_a_gate_is_read_before_its_wave_has_finished() -> None:
    gates = tuple(map(parse_gate, ("agreement>=0.9,on_missing=fail,min_devices=2", "install>=0.5")))
    rollout = Rollout("r", "lab", "a@2", parse_waves("100%"), policy=Policy(gates=gates))
    assert gauge(rollout, [member("a", "QUEUED")], 0, 10.0) == ()
    one = gauge(rollout, [member("a", "IN_PROGRESS"), member("b", "IN_PROGRESS")], 0, 10.0)
    assert [r.verdict for r in one] == ["missing", "missing"], "it is too early for a breach"
    some = [member("a", "SUCCEEDED", agreement=0.95), member("b", "IN_PROGRESS", agreement=0.5)]
    read = gauge(rollout, some, 0, 10.0)
    assert [(r.verdict, r.value, r.measured) for r in read] == [
        ("breached", 0.5, 2), ("holds", 1.0, 1),
    ]  # fmt: skip
