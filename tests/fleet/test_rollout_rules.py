"""Gates, ways back, retries, penalties, limits: the rules alone, and a fleet that is simulated."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_agent.core.reasons import REASONS
from edgepack_fleet.core import members as of
from edgepack_fleet.core.actions import (
    Action,
    Assign,
    Cancel,
    Complete,
    Pause,
    Recall,
    Revert,
    Reverted,
    TimeOut,
    Withdraw,
)  # fmt: skip
from edgepack_fleet.core.gates import parse_gate
from edgepack_fleet.core.measures import add, baseline, drifted, metrics
from edgepack_fleet.core.model import TERMINAL, Device, Member, Policy, Rollout
from edgepack_fleet.core.record import actions_as_json, pack, unpack
from edgepack_fleet.core.rehearsal import rehearse
from edgepack_fleet.core.rollout import decide
from edgepack_fleet.core.waves import parse_waves, wave_sizes

NEW, OLD = "new.json", "old.json"


def rollout(waves: str = "1,100%", state: str = "running", **policy: object) -> Rollout:
    return Rollout("r1", "lab", "digits@2.0.0", parse_waves(waves), state,  # type: ignore[arg-type]
                   Policy(**policy))  # type: ignore[arg-type]  # fmt: skip


def member(name: str, status: str = "QUEUED", wave: int | None = None, **facts: object) -> Member:
    device = Device(name, "lab", online=bool(facts.pop("online", True)))
    return replace(Member(device, NEW, wave, status), **facts)  # type: ignore[arg-type]


def gated(*gates: str, **policy: object) -> Rollout:
    return rollout(gates=tuple(map(parse_gate, gates)), **policy)


def given_to(actions: tuple[Action, ...]) -> list[str]:
    return [a.device for a in actions if isinstance(a, Assign)]


@pytest.mark.parametrize(
    "text", ["", "p95", "p95_ratio<=x", "speed<=1", "drift<=inf", "drift<=1,min_devices=0",
             "drift<=1,on_missing=maybe", "drift==1", "drift<=1,"],
)  # fmt: skip
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gate(text)


def test_a_gate_is_written_as_it_is_read() -> None:
    for text in ("p95_ratio<=1.2", "agreement>=0.95,on_missing=skip,min_devices=5", "drift<0.1"):
        assert str(parse_gate(text)) == text


def test_no_wave_starts_while_a_gate_is_not_met() -> None:
    plan = gated("p95_ratio<=1.2", gate_wait_s=100)
    unknown = [member("a", "SUCCEEDED", 0), member("b")]
    waiting = decide(plan, unknown, 50.0)
    assert waiting.actions == ()
    assert waiting.reason == "Wave 1 of 2 waits: p95_ratio is known of 0 of 1 devices."
    (pause,) = decide(plan, unknown, 101.0).actions
    assert isinstance(pause, Pause), "what waits has a deadline"
    good = [member("a", "SUCCEEDED", 0, measured={"p95_ratio": 1.2}), member("b")]
    assert given_to(decide(plan, good, 0.0).actions) == ["b"]


def test_what_is_missing_may_be_skipped_or_count_as_a_breach() -> None:
    devices = [member("a", "SUCCEEDED", 0), member("b")]
    assert given_to(decide(gated("exam>=0.9,on_missing=skip"), devices, 0.0).actions) == ["b"]
    (stop,) = decide(gated("exam>=0.9,on_missing=fail"), devices, 0.0).actions
    assert isinstance(stop, Pause)


@pytest.mark.parametrize(
    ("policy", "kind"), [("pause", Pause), ("cancel", Cancel), ("revert", Revert)]
)
def test_a_breach_does_what_the_policy_says(policy: str, kind: type) -> None:
    devices = [member("a", "SUCCEEDED", 0, measured={"agreement": 0.5}), member("b")]
    decision = decide(gated("agreement>=0.95", on_breach=policy), devices, 0.0)
    assert [type(a) for a in decision.actions] == [kind]
    assert "in wave 1 agreement is 0.5, wanted is >= 0.95" in decision.reason


def test_one_bad_kind_of_box_is_not_hidden_by_an_average() -> None:
    plan = gated("p95_ratio<=1.2", waves="100%")
    devices = [member(f"d{n:02}", "SUCCEEDED", 0, measured={"p95_ratio": 1.0}) for n in range(16)]
    slow = [member(f"s{n}", "SUCCEEDED", 0, measured={"p95_ratio": 2.0}) for n in range(4)]
    assert isinstance(decide(plan, devices + slow[:1], 0.0).actions[0], Complete)
    assert isinstance(decide(plan, devices + slow, 0.0).actions[0], Pause)


def test_a_waived_gate_counts_no_more() -> None:
    devices = [member("a", "SUCCEEDED", 0, measured={"agreement": 0.5}), member("b")]
    plan = replace(gated("agreement>=0.95"), waived=frozenset({"0:agreement"}))
    assert given_to(decide(plan, devices, 0.0).actions) == ["b"]


def test_a_reason_that_may_pass_gets_another_try_and_then_fails() -> None:
    plan = rollout(max_attempts=2, retry_s=10)
    devices = [member("a", "FAILED", 0, reason="unreachable", since=100.0), member("b")]
    assert decide(plan, devices, 109.0).actions == ()
    assert decide(plan, devices, 110.0).actions == (Assign("a", NEW, 0, 2),)
    again = [replace(devices[0], attempt=2), devices[1]]
    assert isinstance(decide(plan, again, 999.0).actions[0], Pause)
    final = [replace(devices[0], reason="golden_mismatch"), devices[1]]
    assert isinstance(decide(plan, final, 999.0).actions[0], Pause)


def test_reasons_that_may_pass_are_the_devices_own_and_none_it_rejects_for() -> None:
    assert {REASONS[reason].kind for reason in of.TRANSIENT} <= {"retry", "fail"}
    assert set(REASONS) >= of.DECLINED


def test_a_pinned_device_is_neither_success_nor_failure_and_makes_room() -> None:
    devices = [member("a", "REJECTED", 0, reason="pinned"), member("b"), member("c")]
    assert given_to(decide(rollout(), devices, 0.0).actions) == ["b"]


def test_who_is_left_out_gets_nothing() -> None:
    devices = [
        member("boxed", boxed_until=100.0),
        member("mine", override=True),
        member("theirs", taken_by="r9"),
    ]
    plan = rollout("100%", overrides="accept")
    assert decide(plan, devices, 50.0).actions == ()
    assert decide(plan, devices, 50.0).reason == (
        "Waiting: r9 goes before digits@2.0.0 on these devices."
    )
    assert given_to(decide(rollout("100%"), devices, 100.0).actions) == ["boxed", "mine"]


def test_limits_of_jobs_at_once_and_per_minute() -> None:
    devices = [member(f"d{n}") for n in range(9)]
    assert len(given_to(decide(rollout("100%", max_in_flight=4), devices, 0.0).actions)) == 4
    busy = [member("x", "IN_PROGRESS", 0, since=1000.0, given=1000.0), *devices]
    slow = rollout("100%", max_per_minute=3)
    assert len(given_to(decide(slow, busy, 1001.0).actions)) == 2
    assert len(given_to(decide(slow, busy, 1060.0).actions)) == 3


def test_who_defers_may_be_silent_for_longer() -> None:
    plan = rollout(timeout_s=10, max_defer_s=1000, total_s=100)
    waits = member("a", "IN_PROGRESS", 0, since=0.0, started=0.0, state="deferred")
    assert decide(plan, [waits], 900.0).actions == ()
    assert isinstance(
        decide(plan, [replace(waits, state="downloading")], 900.0).actions[0], TimeOut
    )
    chatty = replace(waits, since=1200.0)
    assert decide(plan, [chatty], 1200.0).actions[0] == TimeOut("a", "job_timeout")


def test_who_left_the_group_counts_no_more() -> None:
    devices = [member("a", "QUEUED", 0, left=True), member("b")]
    assert decide(rollout("100%"), devices, 0.0).actions == (Withdraw("a"), Assign("b", NEW, 0))


def test_the_way_back() -> None:
    plan = rollout("100%", state="reverting")
    devices = [
        member("busy", "IN_PROGRESS", 0),
        member("done", "SUCCEEDED", 0, has_it=True, before=OLD),
        member("first", "SUCCEEDED", 0, has_it=True),
        member("off", "SUCCEEDED", 0, has_it=True, before=OLD, online=False),
        member("wait", "QUEUED", 0),
        member("want"),
    ]
    decision = decide(plan, devices, 0.0)
    assert decision.actions == (
        Recall("busy"), Withdraw("wait"), Assign("done", OLD, 0, 2, "revert"),
    )  # fmt: skip
    back = member("done", "SUCCEEDED", 0, kind="revert", before=OLD)
    end = decide(plan, [devices[2], devices[3], back], 0.0)
    assert end.actions == (Reverted(end.reason),)
    assert end.reason == (
        "1 device is back on the release before, 1 had nothing to go back to; "
        "1 is out of reach and goes back when it returns."
    )
    later = replace(devices[3], device=replace(devices[3].device, online=True))
    done = replace(plan, state="reverted")
    assert given_to(decide(done, [devices[2], later, back], 0.0).actions) == ["off"]


def test_metrics_are_added_up_and_what_a_device_compared_itself_goes_first() -> None:
    def report(inferences: int, edge: int) -> dict[str, object]:
        counts = [0, 0, 0]
        counts[edge] = inferences
        return {"inferences": inferences, "rss_mb": 40.0,
                "errors": {"runtime_error": 1, "bad_request": 9},
                "latency_ms": {"edges": [10.0, 20.0], "counts": counts}}  # fmt: skip

    kept = baseline([report(60, 0)])
    assert metrics(kept, {}) == {}
    kept = add(add(kept, report(30, 1)), report(30, 1))
    found = metrics(kept, {"exam": [{"score": 0.9}]})
    assert found == pytest.approx(
        {"exam": 0.9, "drift": 0.0, "memory": 40.0, "error_rate": 2 / 62, "p95_ratio": 19.5 / 10}
    )
    shadow = {"shadow": {"samples": 9, "agreement": 0.97, "p95_ratio": 1.1, "dropped": 0}}
    told = metrics(drifted(kept, "mean", over=False), shadow)
    assert (told["p95_ratio"], told["agreement"], told["drift"]) == (1.1, 0.97, 1.0)
    assert metrics(drifted(drifted({}, "mean", over=False), "mean", over=True), {})["drift"] == 0
    assert metrics({}, {"shadow": {"agreement": "NaN"}, "score": True}) == {}


def test_a_rehearsal_says_who_gets_it_when_and_why_others_do_not() -> None:
    devices = [
        member("a"),
        member("b", online=False),
        member("c"),
        replace(member("x"), target=None),
    ]
    parts = rehearse(rollout("1,50%"), devices, {"x": "it has no onnx"}, 0.0)
    assert [(p.device, p.wave, p.why) for p in parts] == [
        ("a", 0, ""), ("b", None, "the waves end before it"), ("c", 1, ""),
        ("x", None, "it has no onnx"),
    ]  # fmt: skip


# -- a fleet that is simulated: devices with their own mind, restarts, outages


class Fleet:
    """Devices that take jobs up, succeed, fail, fall silent, leave the net and come back."""

    def __init__(self, plan: Rollout, count: int, seed: int) -> None:
        self.plan, self.chance, self.now = plan, random.Random(seed), 0.0
        self.members = {f"d{n:02}": member(f"d{n:02}", online=self.chance.random() < 0.8)
                        for n in range(count)}  # fmt: skip
        self.before = {name: self.chance.choice([OLD, OLD, None]) for name in self.members}

        self.earlier: dict[str, list[Member]] = {name: [] for name in self.members}

    def step(self) -> None:
        self.now += self.chance.uniform(1, 30)
        decision = decide(self.plan, list(self.members.values()), self.now)
        self.check(decision.actions)
        assert decision.reason.count(".") >= 1
        if self.chance.random() < 0.1:
            kept = unpack(pack(self.plan, list(self.members.values()), self.now).data)
            again = decide(kept.rollout, kept.members, kept.now)
            assert again.reason == decision.reason
            assert actions_as_json(again.actions) == actions_as_json(decision.actions)
        for action in decision.actions:
            self.carry_out(action)
        self.plan = replace(self.plan, standing=decision.reason)
        self.live()

    def check(self, actions: tuple[Action, ...]) -> None:
        given = [a for a in actions if isinstance(a, Assign)]
        assert not given or self.plan.state not in {"paused", "cancelled", "draft"}
        touched = Counter(getattr(a, "device", None) for a in given)
        assert all(n == 1 for n in touched.values()), "a device has one job at most"
        ended = {a.device for a in actions if isinstance(a, TimeOut | Withdraw)}
        busy = {n for n, m in self.members.items()
                if m.wave is not None and m.status not in TERMINAL and n not in ended}  # fmt: skip
        assert not busy & set(touched)
        if given:
            assert len(busy) + len(given) <= self.plan.policy.max_in_flight
        for action in given:
            assert self.members[action.device].device.online
            if action.kind == "install":
                self.check_gates(action.wave)

    def check_gates(self, wave: int) -> None:
        """No wave before WAVE may have a measured device beyond the limit, or none measured."""
        for index in range(wave):
            inside = [m for m in self.members.values() if m.wave == index and of.reached(m)]
            inside = [m for m in inside if not of.declined(m)]
            values = sorted(m.measured["p95_ratio"] for m in inside if m.measured)
            assert not inside or values
            assert not values or values[(9 * len(values) + 9) // 10 - 1] <= 1.2

    def carry_out(self, action: Action) -> None:
        states = {Pause: "paused", Revert: "reverting", Reverted: "reverted",
                  Complete: "completed", Cancel: "cancelled"}  # fmt: skip
        if type(action) in states:
            self.plan = replace(self.plan, state=states[type(action)])  # type: ignore[arg-type]
            return
        name: str = action.device  # type: ignore[union-attr]
        old = self.members[name]
        match action:
            case Assign():
                self.earlier[name].append(old)
                back = action.kind == "revert"
                assert back or action.target == NEW
                new = replace(old, wave=action.wave, status="QUEUED", attempt=action.attempt,
                              kind=action.kind, since=self.now, given=self.now, started=None,
                              before=self.before[name], reason="")  # fmt: skip
            case Withdraw():
                was = self.earlier[name].pop()
                new = replace(was, device=old.device, has_it=old.has_it)
            case Recall():
                new = replace(old, status="CANCELED", since=self.now)
            case TimeOut():
                new = replace(old, status="TIMED_OUT", since=self.now)
        self.members[name] = new

    def live(self) -> None:
        for name, m in self.members.items():
            online = m.device.online if self.chance.random() < 0.9 else not m.device.online
            m = replace(m, device=replace(m.device, online=online))
            if online and m.wave is not None and m.status == "QUEUED":
                m = replace(m, status="IN_PROGRESS", since=self.now, started=self.now)
            elif online and m.status == "IN_PROGRESS" and self.chance.random() < 0.6:
                m = self.finish(m)
            elif m.has_it and m.kind == "install" and not m.measured:
                ratio = 2.0 if self.chance.random() < 0.05 else 1.0
                m = replace(m, measured={"p95_ratio": ratio})
            self.members[name] = m

    def finish(self, m: Member) -> Member:
        bad = self.chance.random()
        if m.kind == "install" and bad < 0.15:
            reason = self.chance.choice(["unreachable", "pinned", "golden_mismatch"])
            status = "REJECTED" if reason == "pinned" else "FAILED"
            return replace(m, status=status, reason=reason, since=self.now)
        return replace(m, status="SUCCEEDED", has_it=m.kind == "install", since=self.now)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 25), st.integers(0, 2**32), st.sampled_from(["pause", "cancel", "revert"]))
def test_a_simulated_fleet_never_breaks_the_rules(count: int, seed: int, breach: str) -> None:
    plan = rollout("1,30%,100%", gates=(parse_gate("p95_ratio<=1.2"),), on_breach=breach,
                   max_in_flight=5, max_failures=3, retry_s=20.0, soak_s=15.0)  # fmt: skip
    fleet = Fleet(plan, count, seed)
    for _ in range(60):
        fleet.step()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 25), st.integers(0, 2**32), st.integers(1, 40))
def test_a_revert_ends_with_everybody_in_reach_on_the_release_before(
    count: int, seed: int, after: int
) -> None:
    fleet = Fleet(rollout("100%", max_failures=1000, max_in_flight=5), count, seed)
    for _ in range(after):
        fleet.step()
    fleet.plan = replace(fleet.plan, state="reverting")
    for _ in range(80):
        fleet.step()
    # Then nobody leaves or comes any more, and whoever is in reach has its time.
    fleet.chance.random = lambda: 0.5  # type: ignore[method-assign]
    for _ in range(20):
        fleet.step()
    assert fleet.plan.state == "reverted"
    for m in fleet.members.values():
        stuck = m.kind == "revert" and m.status == "TIMED_OUT"
        if m.has_it and m.device.online and m.before is not None:
            assert stuck


def test_sizes_stay_within_the_group() -> None:
    assert wave_sizes(parse_waves("1,30%,100%"), 7) == (1, 3, 7)
