"""What a rollout decides: waves, quorum, halting, silence, late returns. Pure; no I/O."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepack.errors import UsageError
from edgepack_fleet.core.actions import Assign, Complete, Pause, TimeOut, Withdraw
from edgepack_fleet.core.model import FAILURES, TERMINAL, Device, Member, Policy, Rollout
from edgepack_fleet.core.progress import count_waves
from edgepack_fleet.core.rollout import decide
from edgepack_fleet.core.waves import parse_waves, wave_sizes

PATH = "models/digits/1.0.0/onnx-int8.json"
TOLERANT = Policy(max_failures=10**6, max_failure_percent=100.0)


def rollout(waves: str = "1,100%", policy: Policy | None = None, **facts: object) -> Rollout:
    made = Rollout("r1", "lab", "digits@1.0.0", parse_waves(waves), policy=policy or Policy())
    return replace(made, **facts)  # type: ignore[arg-type]


def member(name: str, status: str = "QUEUED", wave: int | None = None, **facts: object) -> Member:
    online = bool(facts.pop("online", True))
    seen = float(facts.pop("seen", 0.0))  # type: ignore[arg-type]
    device = Device(name, "lab", online=online, seen=seen)
    return replace(Member(device, target=PATH, wave=wave, status=status), **facts)  # type: ignore[arg-type]


def assigned(actions: Sequence[object]) -> list[str]:
    return [a.device for a in actions if isinstance(a, Assign)]


def test_waves_are_numbers_or_percentages() -> None:
    waves = parse_waves("1, 10%,100%")
    assert [str(wave) for wave in waves] == ["1", "10%", "100%"]
    assert wave_sizes(waves, 25) == (1, 3, 25)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1,", "101%", "x", "1.5", "50%,10%", "%", "1e3", "٣", "9" * 5000]
)
def test_other_waves_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_waves(text)


WAVE_TEXTS = st.lists(
    st.one_of(st.integers(1, 30).map(str), st.integers(1, 100).map(lambda n: f"{n}%")),
    min_size=1,
    max_size=4,
).filter(lambda ws: (p := [int(w[:-1]) for w in ws if w.endswith("%")]) == sorted(p))


@given(WAVE_TEXTS, st.integers(0, 60))
def test_sizes_are_cumulative_and_never_more_than_there_are(texts: list[str], total: int) -> None:
    sizes = wave_sizes(parse_waves(",".join(texts)), total)
    assert len(sizes) == len(texts)
    assert list(sizes) == sorted(sizes)
    assert all(0 <= size <= total for size in sizes)
    if texts[-1] == "100%":
        assert sizes[-1] == total


def test_the_first_wave_waits_for_its_devices_before_the_next_starts() -> None:
    devices = [member(name) for name in "abc"]
    first = decide(rollout(), devices, 0.0)
    assert first.actions == (Assign("a", PATH, 0),)
    devices[0] = member("a", "IN_PROGRESS", 0)
    assert decide(rollout(), devices, 0.0).actions == ()
    devices[0] = member("a", "SUCCEEDED", 0)
    assert assigned(decide(rollout(), devices, 0.0).actions) == ["b", "c"]
    done = [member(name, "SUCCEEDED", wave) for name, wave in (("a", 0), ("b", 1), ("c", 1))]
    (end,) = decide(rollout(), done, 0.0).actions
    assert isinstance(end, Complete)
    assert end.reason == "3 of 3 devices run digits@1.0.0."


def test_a_quorum_of_a_wave_is_enough_to_go_on_but_not_to_end() -> None:
    plan = rollout("50%,100%", Policy(quorum=0.9))
    inside = [member(f"a{n}", "SUCCEEDED", 0) for n in range(9)] + [member("b", "IN_PROGRESS", 0)]
    outside = [member(f"c{n}") for n in range(10)]
    assert len(assigned(decide(plan, inside + outside, 0.0).actions)) == 10
    later = inside + [member(f"c{n}", "SUCCEEDED", 1) for n in range(10)]
    assert decide(plan, later, 0.0).actions == (), "one is still under way"


def test_a_wave_soaks() -> None:
    plan = rollout("1,100%", Policy(soak_s=30))
    devices = [member("a", "SUCCEEDED", 0, since=100.0), member("b")]
    waiting = decide(plan, devices, 129.0)
    assert waiting.actions == ()
    assert "soaks" in waiting.reason
    assert assigned(decide(plan, devices, 130.0).actions) == ["b"]


def test_a_failure_pauses_and_the_sentence_names_the_reason() -> None:
    devices = [member("a", "FAILED", 0, reason="acceptance_below_limit"), member("b")]
    decision = decide(rollout(), devices, 0.0)
    assert decision.actions == (Pause(decision.reason),)
    assert decision.reason == (
        "Paused: 1 of 1 finished devices failed (acceptance_below_limit); the limit is 1."
    )


def test_the_share_of_failures_counts_finished_devices_and_needs_a_sample() -> None:
    policy = Policy(max_failures=100, max_failure_percent=20, min_sample=5)
    plan = rollout("100%", policy)
    waiting = [member(f"w{n}", "IN_PROGRESS", 0) for n in range(50)]
    three = [member(f"s{n}", "SUCCEEDED", 0) for n in range(3)]
    one_bad = [member("f0", "FAILED", 0, reason="ram")]
    assert decide(plan, waiting + three + one_bad, 0.0).actions == (), "4 finished are too few"
    two_bad = [*one_bad, member("f1", "TIMED_OUT", 0)]
    (pause,) = decide(plan, waiting + three + two_bad, 0.0).actions
    assert isinstance(pause, Pause)
    assert "2 of 5" in pause.reason
    assert "40%" in pause.reason


def test_a_wave_in_which_nobody_succeeded_never_leads_to_the_next() -> None:
    devices = [member("a", "REJECTED", 0, reason="runtime"), member("b")]
    decision = decide(rollout(policy=TOLERANT), devices, 0.0)
    assert [type(a) for a in decision.actions] == [Pause]
    assert "no device of wave 1 succeeded (runtime)" in decision.reason


def test_failures_the_operator_accepted_count_no_more() -> None:
    devices = [member("a", "FAILED", 0, reason="x"), member("b")]
    plan = rollout(forgiven=frozenset({"a"}))
    assert assigned(decide(plan, devices, 0.0).actions) == ["b"]


def test_silence_is_a_failure_in_every_state_but_only_past_the_timeout() -> None:
    devices = [member("a", "IN_PROGRESS", 0, since=100.0), member("b")]
    plan = rollout(policy=Policy(timeout_s=10))
    assert decide(plan, devices, 110.0).actions == ()
    late = decide(plan, devices, 110.1)
    assert [type(a) for a in late.actions] == [TimeOut, Pause]
    assert "timed_out" in late.reason
    paused = decide(replace(plan, state="paused"), devices, 200.0)
    assert paused.actions == (TimeOut("a"),)


def test_a_device_that_is_never_reached_is_in_neither_number() -> None:
    devices = [
        member("a", "SUCCEEDED", 0),
        member("b", "SUCCEEDED", 1),
        member("c", online=False),
    ]
    (end,) = decide(rollout(), devices, 0.0).actions
    assert isinstance(end, Complete)
    assert "2 of 3" in end.reason
    assert "1 has not been reached yet" in end.reason
    assert count_waves(rollout(), devices)[1].pending == 1


def test_who_returns_late_gets_it_from_a_completed_rollout() -> None:
    devices = [member("a", "SUCCEEDED", 0), member("c", online=True)]
    plan = rollout(state="completed")
    assert assigned(decide(plan, devices, 0.0).actions) == ["c"]


def test_who_returns_late_fills_the_wave_that_runs_and_no_more() -> None:
    plan = rollout("1,50%,100%")
    devices = [member("a", "SUCCEEDED", 0)]
    devices += [member(f"b{n}", online=False) for n in range(9)]
    assert decide(plan, devices, 0.0).actions == ()
    back = [devices[0], *(replace(m, device=replace(m.device, online=True)) for m in devices[1:])]
    assert len(assigned(decide(plan, back, 0.0).actions)) == 4


def test_an_offline_device_keeps_its_place_for_a_while_only() -> None:
    plan = rollout("1,100%", Policy(patience_s=60))
    devices = [member("a", "QUEUED", 0, online=False, seen=1000.0, since=900.0), member("b")]
    assert decide(plan, devices, 1059.0).actions == ()
    assert decide(plan, devices, 1061.0).actions == (Withdraw("a"), Assign("b", PATH, 0))


def test_a_device_no_variant_fits_is_not_counted() -> None:
    misfit = replace(member("x"), target=None)
    devices = [misfit, member("a", "SUCCEEDED", 0)]
    (end,) = decide(rollout("100%"), devices, 0.0).actions
    assert isinstance(end, Complete)
    assert "1 of 1" in end.reason
    nobody = decide(rollout("100%"), [misfit], 0.0)
    assert nobody.actions == ()
    assert nobody.reason.startswith("Waiting: no device of group lab can run")


# -- properties

MEMBERS = st.builds(
    lambda status, wave, online, since: (status, wave, online, since),
    st.sampled_from(["QUEUED", "IN_PROGRESS", *sorted(TERMINAL)]),
    st.integers(0, 3),
    st.booleans(),
    st.floats(0, 100),
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Rollout, list[Member], float]:
    texts = draw(WAVE_TEXTS)
    drawn = draw(st.lists(st.one_of(st.none(), MEMBERS), max_size=12))
    members = []
    for number, facts in enumerate(drawn):
        name = f"d{number:02}"
        if facts is None:
            members.append(member(name, online=draw(st.booleans())))
        else:
            status, wave, online, since = facts
            inside = min(wave, len(texts) - 1)
            members.append(member(name, status, inside, online=online, since=since, seen=since))
    state = draw(st.sampled_from(["draft", "running", "paused", "completed", "cancelled"]))
    policy = Policy(
        max_failures=draw(st.integers(1, 20)),
        quorum=draw(st.sampled_from([0.5, 0.9, 1.0])),
        timeout_s=draw(st.floats(1, 100)),
    )
    return rollout(",".join(texts), policy, state=state), members, draw(st.floats(0, 300))


@settings(max_examples=400)
@given(situations())
def test_rules_that_hold_in_every_situation(
    situation: tuple[Rollout, list[Member], float],
) -> None:
    plan, members, now = situation
    decision = decide(plan, members, now)
    assert decision == decide(plan, list(members), now), "same inputs, same decisions"
    by_name = {m.device.id: m for m in members}
    actions = decision.actions
    given_to = [a for a in actions if isinstance(a, Assign)]
    withdrawn = {a.device for a in actions if isinstance(a, Withdraw)}
    if plan.state not in {"running", "completed"}:
        assert all(isinstance(a, TimeOut) for a in actions), "a rollout that stands assigns nothing"
    if any(isinstance(a, Pause) for a in actions):
        assert not given_to
    for action in given_to:
        assert by_name[action.device].wave is None
        assert by_name[action.device].device.online
    assert len({a.device for a in given_to}) == len(given_to)
    for action in actions:
        if isinstance(action, TimeOut):
            assert by_name[action.device].status == "IN_PROGRESS"
        if isinstance(action, Withdraw):
            assert by_name[action.device].status == "QUEUED"
            assert not by_name[action.device].device.online
    if given_to:
        sizes = wave_sizes(plan.waves, len(members))
        holding = [m for m in members if m.wave is not None and m.device.id not in withdrawn]
        (wave,) = {a.wave for a in given_to}
        assert len(holding) + len(given_to) <= sizes[wave]
        for before in range(wave):
            _assert_done(plan, [m for m in holding if m.wave == before], actions)
            assert len(holding) >= sizes[before], "the wave before is full"


def _assert_done(plan: Rollout, inside: list[Member], actions: Sequence[object]) -> None:
    late = {a.device for a in actions if isinstance(a, TimeOut)}
    reached = [m for m in inside if m.status != "QUEUED"]
    finished = [m for m in reached if m.status in TERMINAL or m.device.id in late]
    if inside:
        assert reached
        assert len(finished) >= math.ceil(plan.policy.quorum * len(reached))


@given(st.integers(1, 40), WAVE_TEXTS, st.randoms(use_true_random=False))
def test_every_rollout_of_willing_devices_ends_with_the_planned_number(
    total: int, texts: list[str], random: object
) -> None:
    plan = rollout(",".join(texts), TOLERANT)
    members = {f"d{n:02}": member(f"d{n:02}") for n in range(total)}
    for now in range(200):
        decision = decide(plan, list(members.values()), float(now))
        for action in decision.actions:
            if isinstance(action, Complete):
                done = sum(m.status == "SUCCEEDED" for m in members.values())
                assert done == wave_sizes(plan.waves, total)[-1]
                return
            assert isinstance(action, Assign)
            chosen = random.choice(["IN_PROGRESS", "SUCCEEDED"])  # type: ignore[attr-defined]
            members[action.device] = member(action.device, chosen, action.wave, since=float(now))
        for name, m in members.items():
            if m.status == "IN_PROGRESS" and m.since < now:
                members[name] = replace(m, status="SUCCEEDED")
    pytest.fail("it never ended")


def test_only_failures_are_failures() -> None:
    assert "CANCELED" not in FAILURES
    assert "SUCCEEDED" not in FAILURES
