"""What has happened, in words; and what a gate would say before its wave has finished."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgepack_fleet.core.gates import gauge, parse_gate
from edgepack_fleet.core.happenings import (
    Happening,
    grouped,
    merged,
    of_audit,
    of_change,
    of_event,
    of_job,
)
from edgepack_fleet.core.model import Device, Member, Policy, Rollout
from edgepack_fleet.core.waves import parse_waves

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("bundle", "reason", "group", "release", "state", "status", "detail")
BODIES = st.dictionaries(st.sampled_from(FIELDS), ANYTHING)


@given(st.sampled_from(["activated", "rolled_back", "drift", "whatever", ""]) | st.text(), BODIES)
def test_whatever_a_device_says_becomes_a_sentence(kind: str, body: dict[str, Any]) -> None:
    one = of_event(1.0, kind, body)
    assert isinstance(one.text, str)
    assert len(one.more) <= 200
    told = of_change(1.0, f"edgepack.device.{kind}", "devices/x", body)
    assert len(told.text) < 1000


def test_what_is_said_of_events_and_of_people() -> None:
    assert of_event(1, "activated", {"bundle": "a@1"}).text == "Runs a@1 now"
    refused = of_event(1, "rejected", {"bundle": "a@2", "reason": "golden_mismatch"}, signed=True)
    assert (refused.tone, refused.more, refused.signed) == ("bad", "golden_mismatch", True)
    assert of_event(1, "drift", {"reason": "classes"}).text == "classes drifts"
    # What a device calls itself is no place to put other words in.
    assert (
        of_event(1, "activated", {"bundle": "{reason}", "reason": "x"}).text == "Runs {reason} now"
    )
    assert (
        of_audit(1, "ci (operator)", "revoke_device", 200, "").text
        == "ci (operator): revoke device"
    )
    denied = of_audit(1, "ci (viewer)", "revoke_device", 403, "refused")
    assert (denied.tone, denied.more) == ("warn", "refused")


def job(status: str, **more: Any) -> list[Happening]:
    facts = {
        "release": "a@2", "status": status, "state": "self_test", "reason": "", "rollout": "r1",
        "kind": "install", "attempt": 1, "created": 1.0, "updated": 9.0,
    }  # fmt: skip
    return of_job(facts | more)


def test_a_job_is_told_from_its_beginning_to_its_last_word() -> None:
    assert [h.text for h in job("QUEUED")] == ["a@2 was offered"]
    begun, now = job("IN_PROGRESS", attempt=2)
    assert begun.text == "a@2 was offered, attempt 2"
    assert (now.text, now.more, now.at) == ("a@2 is under way", "self test", 9.0)
    ended = job("FAILED", reason="disk_full")[1]
    assert (ended.text, ended.more, ended.tone, ended.subject) == (
        "a@2 failed", "disk_full", "bad", "rollouts/r1",
    )  # fmt: skip
    assert job("SUCCEEDED", kind="revert")[1].text == "The way back from a@2 succeeded"


@given(st.lists(st.floats(0, 1e9)), st.integers(0, 20))
def test_the_newest_come_first(times: list[float], limit: int) -> None:
    found = [Happening(at, "link", "plain", "x") for at in times]
    assert [h.at for h in merged(found, limit)] == sorted(times, reverse=True)[:limit]


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
