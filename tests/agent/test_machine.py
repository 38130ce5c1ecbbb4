"""The update story as a pure table, driven through every order of events a device could meet."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgepack.messages import Shadow
from edgepack_agent.core import effects as fx
from edgepack_agent.core import events as ev
from edgepack_agent.core import state as s
from edgepack_agent.core.deadlines import MAX_TRIES, TOO_LATE, deadline
from edgepack_agent.core.machine import MAX_BOOTS, PHASES, TABLE, transition
from edgepack_agent.core.phases import MAX_STEPS
from edgepack_agent.core.reasons import REASONS, kind_of

EXAM = s.Exam("e" * 64, 10, 0.9)


def model(version: int, *, exam: bool = True) -> s.Model:
    release = f"digits@{version}.0.0"
    return s.Model(release, f"models/{release}", f"{version:064d}", 100, 0, EXAM if exam else None)


def job(version: int, *, local: bool = False, shadow: Shadow | None = None) -> s.Job:
    found = model(version)
    return s.Job(f"job-{version}", found.release, found.path, local=local, shadow=shadow)


MODELS = st.integers(1, 4).map(model)
SLOTS = st.builds(s.Slot, st.sampled_from(["a", "b"]), MODELS)
JOBS = st.builds(
    job, st.integers(1, 4), local=st.booleans(), shadow=st.sampled_from([None, Shadow()])
)
OUTCOMES = st.builds(
    s.Outcome,
    st.sampled_from(["job-1", "job-2"]),
    st.sampled_from(["SUCCEEDED", "FAILED", "REJECTED", "CANCELED"]),
    st.just("why"),
)
HOLDS = st.builds(
    s.Hold, st.sampled_from(["window", "lock", "metered", "power"]), st.none() | st.floats(0, 1e10)
)
STATES = st.builds(
    s.State,
    phase=st.sampled_from(PHASES),
    current=st.none() | SLOTS,
    previous=st.none() | SLOTS,
    job=st.none() | JOBS,
    candidate=st.none() | SLOTS,
    result=st.none() | OUTCOMES,
    outcome=st.none() | OUTCOMES,
    ended=st.sampled_from(["", "job-1"]),
    boots=st.integers(0, 5),
    repairs=st.integers(0, 5),
    exposed=st.booleans(),
    hold=st.none() | HOLDS,
    pinned=st.sampled_from(["", "exhibition"]),
    tries=st.integers(0, 5),
    steps=st.integers(0, 30),
    shadow=st.sampled_from([{}, {"samples": 20}]),
    exam=st.sampled_from([{}, {"score": 0.95, "min_score": 0.9}]),
)
EVENTS = st.one_of(
    st.sampled_from([
        ev.Booted(), ev.CancelAsked(), ev.Unreachable(), ev.Retry(), ev.Downloaded(), ev.Damaged(),
        ev.Staged(), ev.Loaded(), ev.Accepting(), ev.Confirmed(), ev.Reverted(), ev.JobGone(),
        ev.Clear(), ev.Died(),
    ]),
    st.builds(ev.JobSeen, JOBS),
    st.builds(ev.JobTaken, st.sampled_from(["job-1", "job-2"])),
    st.builds(ev.JobGone, st.sampled_from(["job-1", "job-2"])),
    st.builds(ev.OutcomeTaken, st.sampled_from(["job-1", "job-2"])),
    st.builds(ev.InstallAsked, JOBS, MODELS),
    st.builds(ev.RollbackAsked, JOBS),
    st.builds(ev.Approved, MODELS),
    st.builds(ev.Failed, st.sampled_from(["FAILED", "REJECTED"]), st.just("why")),
    st.builds(ev.Checked, st.booleans(), st.none() | st.floats(0, 1)),
    st.builds(ev.Judged, st.booleans(), st.just("why")),
    st.builds(ev.Shadowed, st.booleans(), st.just("why"), st.just({"samples": 20})),
    st.builds(ev.TimerFired, st.sampled_from(PHASES), st.booleans()),
    st.builds(ev.Held, HOLDS),
    st.builds(ev.Troubled, st.just("storage")),
    st.builds(ev.PinAsked, st.sampled_from(["", "exhibition"])),
)  # fmt: skip


@settings(max_examples=600)
@given(STATES, EVENTS)
def test_the_table_is_total_and_stays_in_its_phases(state: s.State, event: ev.Event) -> None:
    after, effects = transition(state, event)
    assert after.phase in PHASES
    assert isinstance(effects, tuple)
    if (state.phase, type(event)) not in TABLE:
        assert after == state
        assert all(isinstance(effect, fx.Log) for effect in effects)


@settings(max_examples=300)
@given(STATES, EVENTS)
def test_only_a_good_verdict_changes_what_is_current(state: s.State, event: ev.Event) -> None:
    after, _ = transition(state, event)
    if after.current != state.current:
        assert state.phase == "probation"
        assert event == ev.Judged(True, "why")
        assert after.current == state.candidate


def test_every_phase_but_idle_has_a_deadline_and_a_way_on() -> None:
    for phase in PHASES:
        slot = s.Slot("a", model(1))
        state = s.State(phase=phase, current=slot, job=job(1), candidate=slot)
        assert (deadline(state) is None) == (phase == "idle")
        if phase != "idle":
            after, effects = transition(state, ev.TimerFired(phase))
            assert after.phase != phase or effects, f"{phase} would last for ever"


@settings(max_examples=300)
@given(STATES)
def test_a_deadline_of_another_phase_means_nothing(state: s.State) -> None:
    for phase in PHASES:
        if phase != state.phase:
            assert transition(state, ev.TimerFired(phase)) == (state, ())


def walk(state: s.State, *events: ev.Event) -> tuple[s.State, list[fx.Effect]]:
    effects: list[fx.Effect] = []
    for event in events:
        state, more = transition(state, event)
        effects += more
    return state, effects


GOOD = (
    ev.Downloaded(), ev.Staged(), ev.Loaded(), ev.Checked(golden=True, score=0.95, min_score=0.9),
    ev.Accepting(), ev.Judged(good=True), ev.Confirmed(),
)  # fmt: skip
RUNS_1 = s.State(current=s.Slot("a", model(1)))


def begun(version: int = 2) -> tuple[ev.Event, ...]:
    taken = ev.JobTaken(f"job-{version}")
    return ev.JobSeen(job(version)), taken, ev.Clear(), ev.Approved(model(version))


def test_a_good_model_is_committed_reported_and_the_old_one_kept() -> None:
    state, effects = walk(RUNS_1, *begun(), *GOOD)
    assert state.phase == "idle"
    assert state.current == s.Slot("b", model(2))
    assert state.previous == s.Slot("a", model(1))
    exam = {"score": 0.95, "min_score": 0.9}
    assert state.outcome == s.Outcome("job-2", "SUCCEEDED", "", {"exam": exam})
    kinds = [type(e) for e in effects if not isinstance(e, fx.Tell | fx.Consider)]
    assert kinds == [
        fx.Approve, fx.Download, fx.Stage, fx.Load, fx.Check, fx.Switch, fx.Drain, fx.Publish,
        fx.Confirm,
    ]  # fmt: skip
    assert walk(state, ev.OutcomeTaken("job-2"))[0].outcome is None


@pytest.mark.parametrize(
    ("checked", "reason"),
    [
        (ev.Checked(golden=False, score=1.0), "golden_mismatch"),
        (ev.Checked(golden=True, score=0.89), "acceptance_below_limit"),
        (ev.Checked(golden=True, score=None), "acceptance_below_limit"),
    ],
)
def test_a_model_that_fails_its_proof_never_answers(checked: ev.Checked, reason: str) -> None:
    state, effects = walk(RUNS_1, *begun(), *GOOD[:3], checked, ev.Reverted())
    assert state.current == RUNS_1.current
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("REJECTED", reason)
    assert not any(isinstance(effect, fx.Switch) for effect in effects)
    assert fx.Revert(s.Slot("b", model(2))) in effects


def test_a_model_that_fails_in_probation_is_rolled_back_and_said_so() -> None:
    state, effects = walk(RUNS_1, *begun(), *GOOD[:5], ev.Judged(good=False, reason="error_rate"))
    assert state.phase == "rolling_back"
    (event,) = [effect for effect in effects if isinstance(effect, fx.Publish)]
    assert (event.type, event.bundle, event.reason) == ("rolled_back", "digits@1.0.0", "error_rate")
    assert event.detail["release"] == "digits@2.0.0"


def test_a_candidate_that_restarts_the_device_is_given_up() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[:5])
    for _ in range(MAX_BOOTS):
        state, _ = walk(state, ev.Booted(), *GOOD[2:5])
        assert state.phase == "probation"
    state, _ = walk(state, ev.Booted(), ev.Reverted())
    assert state.current == RUNS_1.current
    assert state.outcome
    assert state.outcome.reason == "restart_loop"


@pytest.mark.parametrize("proven", [2, 3, 4, 5])
def test_a_candidate_that_dies_once_is_loaded_again_and_twice_is_given_up(proven: int) -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[:proven])
    state, effects = walk(state, ev.Died({"code": -9}))
    assert state.phase == "staged"
    assert fx.Load(s.Slot("b", model(2))) in effects
    state, _ = walk(state, ev.Died({"code": -9}), ev.Reverted())
    assert state.current == RUNS_1.current
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("FAILED", "runner_exited")
    assert state.deaths == 0


def test_what_ended_here_is_not_begun_again() -> None:
    state, _ = walk(RUNS_1, *begun(), ev.Failed("FAILED", "disk_full"), ev.Reverted())
    again, effects = walk(state, ev.JobSeen(job(2)))
    assert again.phase == "idle"
    assert effects == [fx.Tell(state.outcome, "idle")]  # type: ignore[arg-type]
    heard, _ = walk(state, ev.OutcomeTaken("job-2"), ev.JobSeen(job(2)))
    assert heard.phase == "idle"


@pytest.mark.parametrize("count", range(1, 7))
def test_the_fleet_can_cancel_at_any_time(count: int) -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[: count - 1], ev.JobGone())
    assert state.phase == "rolling_back"
    state, _ = walk(state, ev.Reverted())
    assert (state.phase, state.current, state.outcome) == ("idle", RUNS_1.current, None)


def test_a_person_goes_back_and_the_fleet_is_told_of_the_override() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD, ev.OutcomeTaken("job-2"))
    state, effects = walk(state, ev.RollbackAsked(job(1, local=True)), *GOOD[2:])
    assert (state.current, state.previous) == (s.Slot("a", model(1)), s.Slot("b", model(2)))
    assert not any(isinstance(effect, (fx.Stage, fx.Download, fx.Tell)) for effect in effects)
    (event,) = [effect for effect in effects if isinstance(effect, fx.Publish)]
    assert event.detail == {"override": True}


def test_a_failed_way_back_keeps_the_previous_slot() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD, ev.OutcomeTaken("job-2"))
    state, effects = walk(
        state, ev.RollbackAsked(job(1, local=True)), ev.Failed("REJECTED", "digest_mismatch")
    )
    assert fx.Revert(None) in effects
    assert state.previous == s.Slot("a", model(1))


BROUGHT = (ev.Judged, ev.Approved, ev.InstallAsked)
"""Events that only a step itself brings."""


class Device(RuleBasedStateMachine):
    """A device with a disk and two runners, whose power can be cut between any two effects."""

    def __init__(self) -> None:
        super().__init__()
        self.state = s.State()
        self.disk: dict[str, s.Model] = {}
        self.todo: list[fx.Effect] = []
        self.serving: s.Slot | None = None
        self.candidate: s.Slot | None = None
        self.answers: set[str] = set()
        self.versions = 0

    def on(self, event: ev.Event) -> None:
        self.state, effects = transition(self.state, event)
        self.todo += effects

    def do(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Stage(slot):
                assert slot != self.state.current
                assert self.state.current is None or slot.name != self.state.current.name
                self.disk[slot.name] = slot.model
            case fx.Load(slot):
                self.candidate = slot
            case fx.Mirror():
                assert "candidate" not in self.answers
            case fx.Switch():
                self.answers.add("candidate")
            case fx.Drain():
                self.answers.discard("serving")
            case fx.Confirm(slot):
                self.serving, self.candidate, self.answers = slot, None, {"serving"}
            case fx.Revert(discard):
                self.candidate = None
                self.answers = {"serving"} if self.serving else set()
                if discard:
                    assert discard not in (self.state.current, self.state.previous)
                    if self.disk.get(discard.name) == discard.model:
                        del self.disk[discard.name]

    def do_all(self) -> None:
        todo, self.todo = self.todo, []
        for effect in todo:
            self.do(effect)

    @rule()
    def power_cut(self) -> None:
        """What was to be done is forgotten; the journal and the disk are not."""
        self.todo, self.candidate = [], None
        self.serving = self.state.current
        self.answers = {"serving"} if self.serving else set()
        self.on(ev.Booted())

    @rule(data=st.data())
    def half_of_the_effects_and_power_cut(self, data: Any) -> None:
        count = data.draw(st.integers(0, len(self.todo)))
        for effect in self.todo[:count]:
            self.do(effect)
        self.power_cut()

    @rule()
    def effects_run_twice(self) -> None:
        todo = list(self.todo)
        self.do_all()
        before = (dict(self.disk), self.serving, self.candidate, set(self.answers))
        for effect in todo:
            self.do(effect)
        assert before == (self.disk, self.serving, self.candidate, self.answers)

    @precondition(lambda self: self.state.phase == "idle")
    @rule(shadow=st.sampled_from([None, Shadow()]))
    def a_job_comes(self, shadow: Shadow | None) -> None:
        self.do_all()
        self.versions += 1
        self.on(ev.JobSeen(job(self.versions, shadow=shadow)))
        self.on(ev.JobTaken(f"job-{self.versions}"))
        self.on(ev.Clear())

    @precondition(lambda self: self.state.phase == "idle" and self.state.previous)
    @rule()
    def a_person_goes_back(self) -> None:
        self.do_all()
        self.on(ev.RollbackAsked(s.Job("local", "x", "y", local=True)))

    @rule(good=st.booleans())
    def the_step_ends(self, good: bool) -> None:
        self.do_all()
        steps: dict[str, ev.Event] = {
            "deferred": ev.Clear(),
            "checking": ev.Approved(model(self.versions)),
            "downloading": ev.Downloaded(),
            "verifying": ev.Staged() if good else ev.Damaged(),
            "staged": ev.Loaded(),
            "self_test": ev.Checked(golden=True, score=1.0 if good else 0.1),
            "shadow": ev.Shadowed(good, "shadow_disagrees", {"samples": 20}),
            "switching": ev.Accepting(),
            "probation": ev.Judged(good, "error_rate"),
            "committed": ev.Confirmed(),
            "rolling_back": ev.Reverted(),
            "idle": ev.OutcomeTaken(f"job-{self.versions}"),
        }
        if self.state.phase in steps:
            self.on(steps[self.state.phase])

    @rule(
        event=EVENTS.filter(lambda e: not isinstance(e, (ev.Judged, ev.Approved, ev.InstallAsked)))
    )
    def something_out_of_order(self, event: ev.Event) -> None:
        self.do_all()
        if (self.state.phase, type(event)) not in TABLE:
            self.on(event)

    @rule(reason=st.sampled_from(["timer", "cancel", "failure"]))
    def it_goes_wrong(self, reason: str) -> None:
        self.do_all()
        self.on(
            {
                "timer": ev.TimerFired(self.state.phase),
                "cancel": ev.JobGone(),
                "failure": ev.Failed("FAILED", "x"),
            }[reason]
        )

    @invariant()
    def what_is_current_is_whole(self) -> None:
        current, previous = self.state.current, self.state.previous
        if current:
            assert self.disk.get(current.name) == current.model
        if previous:
            assert self.disk.get(previous.name) == previous.model
            assert current
            assert previous.name != current.name

    @invariant()
    def something_answers_once_a_model_was_committed(self) -> None:
        if self.state.current and self.serving:
            assert self.answers

    @invariant()
    def who_is_compared_answers_nobody(self) -> None:
        if self.state.phase == "shadow":
            assert not self.state.exposed

    @invariant()
    def there_is_one_candidate_at_most(self) -> None:
        if self.state.phase == "idle":
            assert self.state.candidate is None
            assert self.state.job is None

    def teardown(self) -> None:
        """From wherever it is, the story ends with the old version or the new."""
        old, wanted = self.state.current, self.state.candidate
        for _ in range(40):
            if self.state.phase == "idle":
                break
            self.the_step_ends(good=True)
            if self.state.phase == "offered":
                self.on(ev.JobTaken(self.state.job.id if self.state.job else ""))
                self.on(ev.Clear())
        self.do_all()
        assert self.state.phase == "idle"
        assert self.state.current in (old, wanted) or (
            self.state.current and self.state.current.model == model(self.versions)
        )


Device.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDevice = Device.TestCase


def test_states_survive_the_journal_unchanged() -> None:
    import msgspec

    state, _ = walk(RUNS_1, *begun(), *GOOD[:3], ev.Checked(golden=True, score=0.1))
    state = replace(state, outcome=s.Outcome("j", "FAILED", "x", {"score": 0.1}))
    assert msgspec.json.decode(msgspec.json.encode(state), type=s.State) == state


# -- waiting for a better moment, trouble that passes, pins

LOCKED = ev.Held(s.Hold("lock", 5e9, "exhibition"))
OFFERED = (ev.JobSeen(job(2)), ev.JobTaken("job-2"))


def test_a_bad_moment_defers_and_the_fleet_is_told_why_and_until_when() -> None:
    state, effects = walk(RUNS_1, *OFFERED, LOCKED)
    assert state.phase == "deferred"
    told = s.Outcome("job-2", "IN_PROGRESS", "lock", {"until": 5e9, "message": "exhibition"})
    assert fx.Tell(told, "deferred") in effects
    assert fx.Recheck(LOCKED.hold) in effects
    same, effects = walk(state, LOCKED)
    assert same == state, "nothing is written while it goes on"
    assert effects == [fx.Recheck(LOCKED.hold)]
    state, effects = walk(state, ev.Clear())
    assert state.phase == "checking"
    assert fx.Approve(job(2)) in effects


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_moment_that_turns_bad_stops_what_is_under_way(count: int) -> None:
    before = (*begun(), *GOOD)[: 3 + count]
    state, effects = walk(RUNS_1, *before, LOCKED)
    assert state.phase == "deferred"
    assert effects.index(fx.Halt()) < effects.index(fx.Recheck(LOCKED.hold))
    assert not any(isinstance(effect, fx.Revert) for effect in effects), "what came is kept"
    state, _ = walk(state, ev.Clear(), ev.Approved(model(2)), *GOOD, ev.OutcomeTaken("job-2"))
    assert state.current == s.Slot("b", model(2))


@pytest.mark.parametrize("count", range(3, 7))
def test_what_has_begun_to_load_goes_through(count: int) -> None:
    before, _ = walk(RUNS_1, *begun(), *GOOD[: count - 1])
    assert transition(before, LOCKED)[0] == before


def test_deferral_ends_by_its_deadline_by_cancel_and_by_a_newer_job() -> None:
    waiting, _ = walk(RUNS_1, *OFFERED, LOCKED)
    late, _ = walk(waiting, ev.TimerFired("deferred", total=True), ev.Reverted())
    assert late.outcome
    assert (late.outcome.status, late.outcome.reason) == ("FAILED", "deferred_too_long")
    assert "lock" in late.outcome.detail["message"]
    for end in (ev.JobGone(), ev.CancelAsked(), ev.JobSeen(job(3))):
        state, _ = walk(waiting, end, ev.Reverted())
        assert (state.phase, state.current, state.hold) == ("idle", RUNS_1.current, None)


def test_trouble_that_may_pass_is_tried_again_a_few_times() -> None:
    state, _ = walk(RUNS_1, *begun())
    for _ in range(MAX_TRIES):
        state, effects = walk(state, ev.Troubled("storage"))
        assert (state.phase, effects) == ("downloading", [fx.TryLater()])
        state, effects = walk(state, ev.Retry())
        assert effects == [fx.Download(model(2))]
    state, _ = walk(state, ev.Troubled("storage"), ev.Reverted())
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("FAILED", "storage")
    assert state.tries == 0


def test_a_job_that_takes_too_long_in_all_ends_but_not_one_that_is_judged() -> None:
    state, _ = walk(RUNS_1, *begun(), ev.TimerFired("downloading", total=True), ev.Reverted())
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("FAILED", "job_timeout")


def test_a_pinned_device_rejects_jobs_until_it_is_not() -> None:
    pinned, _ = walk(RUNS_1, ev.PinAsked("exhibition"))
    state, effects = walk(pinned, ev.JobSeen(job(2)))
    no = s.Outcome("job-2", "REJECTED", "pinned", {"message": "exhibition"})
    assert (state.phase, state.outcome, state.pinned) == ("idle", no, "exhibition")
    assert fx.Tell(no, "idle") in effects
    state, _ = walk(state, ev.OutcomeTaken("job-2"), ev.PinAsked(""), ev.JobSeen(job(3)))
    assert state.phase == "offered"


@pytest.mark.parametrize("count", range(1, 8))
def test_a_pin_ends_what_is_under_way(count: int) -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[: count - 1])
    state, _ = walk(state, ev.PinAsked("exhibition"))
    if count < 7:
        state, _ = walk(state, ev.Reverted())
        assert state.outcome
        assert (state.outcome.status, state.outcome.reason) == ("REJECTED", "pinned")
        assert state.current == RUNS_1.current
    assert state.pinned == "exhibition"


def test_a_job_that_goes_round_in_circles_is_ended() -> None:
    state, _ = walk(RUNS_1, *begun())
    state = replace(state, steps=MAX_STEPS)
    state, _ = walk(state, ev.Downloaded(), ev.Reverted())
    assert state.outcome
    assert state.outcome.reason == "restart_loop"
    assert state.current == RUNS_1.current


def test_a_failed_download_does_not_cost_the_way_back() -> None:
    """Both use the same slot, and nothing of the new model is in it yet."""
    two, _ = walk(RUNS_1, *begun(), *GOOD, ev.OutcomeTaken("job-2"))
    assert two.previous == s.Slot("a", model(1))
    state, effects = walk(two, *begun(3), ev.Failed("FAILED", "disk_full"))
    assert state.candidate == s.Slot("a", model(3))
    assert fx.Revert(None) in effects
    assert state.previous == s.Slot("a", model(1))


RUNS_2 = s.State(current=s.Slot("b", model(2)), previous=s.Slot("a", model(1)))


def test_a_revocation_is_told_once_and_costs_nothing_if_the_model_may_stay() -> None:
    said = ev.Stood(model(2).digest, revoked=True)
    state, effects = walk(RUNS_2, said)
    (told,) = effects
    assert isinstance(told, fx.Publish)
    assert (told.type, told.detail) == ("revoked", {"policy": "keep"})
    assert walk(state, said) == (state, [])
    assert (state.current, state.previous) == (RUNS_2.current, RUNS_2.previous)


def test_a_model_that_must_stop_gives_way_to_the_one_before_if_that_is_allowed() -> None:
    said = ev.Stood(model(2).digest, revoked=True, stop=True, back=True)
    state, effects = walk(RUNS_2, said)
    assert fx.Retire(s.Slot("b", model(2))) in effects
    assert fx.Load(s.Slot("a", model(1))) in effects
    assert state.current is None
    state, _ = walk(state, *GOOD[2:])
    assert (state.current, state.previous) == (s.Slot("a", model(1)), None)


def test_a_model_that_must_stop_leaves_nothing_if_nothing_is_allowed() -> None:
    said = ev.Stood(model(2).digest, revoked=True, stop=True, back=False)
    state, effects = walk(RUNS_2, said)
    assert fx.Retire(s.Slot("b", model(2))) in effects
    assert (state.phase, state.current, state.previous) == ("idle", None, None)
    assert walk(state, *begun(3), *GOOD)[0].current == s.Slot("a", model(3))


def test_what_is_said_of_another_model_or_during_an_update_changes_nothing() -> None:
    late = ev.Stood(model(1).digest, revoked=True, stop=True)
    assert walk(RUNS_2, late) == (RUNS_2, [])
    busy, _ = walk(RUNS_2, *begun(3))
    assert walk(busy, ev.Stood(model(2).digest, revoked=True, stop=True)) == (busy, [])


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_a_job_writes_little_and_commits_once(events: list[ev.Event]) -> None:
    state, commits, stores = RUNS_1, 0, 0
    for event in (*begun(), *events):
        after, effects = transition(state, event)
        if after.job is None or state.job is None or after.job.id != state.job.id:
            commits = stores = 0
        commits += sum(isinstance(e, fx.Confirm) for e in effects if state.phase != "committed")
        moment = isinstance(event, ev.Held | ev.Clear | ev.PinAsked | ev.OutcomeTaken)
        fetching = state.phase in {"deferred", "checking", "offered"}
        stores += after != state and not moment and not fetching
        assert commits <= 1
        assert stores <= MAX_STEPS + MAX_TRIES + 6
        assert after.current is not None
        assert after.boots <= MAX_BOOTS
        assert (deadline(after) is None) == (after.phase == "idle")
        state = after


def test_every_reason_that_ends_a_phase_is_in_the_table_of_reasons() -> None:
    for status, reason in TOO_LATE.values():
        assert REASONS[reason].kind == {"FAILED": "fail", "REJECTED": "reject"}[status]
    assert kind_of("nobody_knows", integrity=True) == "reject"
    assert kind_of("nobody_knows", integrity=False) == "fail"


def test_a_list_that_is_damaged_while_it_is_checked_is_asked_for_again() -> None:
    state, _ = walk(RUNS_1, ev.JobSeen(job(2)), ev.JobTaken("job-2"), ev.Clear())
    for _ in range(MAX_TRIES):
        state, effects = transition(state, ev.Damaged())
        assert (state.phase, effects) == ("checking", (fx.TryLater(),))
    state, _ = transition(state, ev.Damaged())
    assert state.result
    assert state.result.reason == "damaged_blob"


def test_a_person_can_decline_what_is_only_offered() -> None:
    state, effects = walk(RUNS_1, ev.JobSeen(job(2)), ev.CancelAsked())
    assert state.phase == "idle"
    assert state.outcome == s.Outcome("job-2", "FAILED", "cancelled_locally")
    assert fx.Tell(state.outcome, "idle") in effects
    assert transition(state, ev.JobSeen(job(2)))[0].phase == "idle", "it does not come back"


# -- the comparison with the current model

SHADOW = Shadow(seconds=5, min_agreement=0.9)
SEEN = {"samples": 40, "agreement": 0.5, "p95_ratio": 1.1, "dropped": 2}
COMPARED = (
    ev.JobSeen(job(2, shadow=SHADOW)), ev.JobTaken("job-2"), ev.Clear(), ev.Approved(model(2)),
    *GOOD[:4],
)  # fmt: skip


def test_a_candidate_is_compared_before_it_answers_and_the_fleet_hears_of_it_in_the_end() -> None:
    state, effects = walk(RUNS_1, *COMPARED)
    assert state.phase == "shadow"
    assert effects[-1] == fx.Mirror(SHADOW)
    assert not any(isinstance(effect, fx.Switch) for effect in effects)
    state, effects = walk(state, ev.Shadowed(True, "", SEEN), *GOOD[4:])
    assert fx.Switch() in effects
    assert state.current == s.Slot("b", model(2))
    proven = {"exam": {"score": 0.95, "min_score": 0.9}, "shadow": SEEN}
    assert state.outcome == s.Outcome("job-2", "SUCCEEDED", "", proven)
    assert state.shadow == {}, "nothing of it is left for the next job"


def test_a_candidate_that_disagrees_never_answers() -> None:
    state, effects = walk(
        RUNS_1, *COMPARED, ev.Shadowed(False, "shadow_disagrees", SEEN), ev.Reverted()
    )
    assert not any(isinstance(effect, fx.Switch) for effect in effects)
    assert state.current == RUNS_1.current
    assert state.outcome == s.Outcome(
        "job-2",
        "FAILED",
        "shadow_disagrees",
        {"exam": {"score": 0.95, "min_score": 0.9}, "shadow": SEEN},
    )
    (told,) = [effect for effect in effects if isinstance(effect, fx.Publish)]
    assert (told.type, told.detail["shadow"]) == ("failed", SEEN)


def test_without_being_asked_nothing_is_compared_nor_what_a_person_installs() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[:4])
    assert state.phase == "switching"
    state, _ = walk(RUNS_1, ev.InstallAsked(job(2, local=True), model(2)), *GOOD[:4])
    assert state.phase == "switching"


@pytest.mark.parametrize("cut", [ev.Booted(), ev.Died()])
def test_a_comparison_that_is_cut_short_begins_again_and_one_that_is_over_does_not(
    cut: ev.Event,
) -> None:
    begun_again, _ = walk(RUNS_1, *COMPARED, cut)
    assert (begun_again.phase, begun_again.shadow) == ("staged", {})
    assert walk(begun_again, *GOOD[2:4])[0].phase == "shadow"
    over, _ = walk(RUNS_1, *COMPARED, ev.Shadowed(True, "", SEEN), ev.Accepting(), cut)
    over, _ = walk(over, *GOOD[2:4])
    assert (over.phase, over.shadow) == ("switching", SEEN)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (ev.TimerFired("shadow"), "no_verdict"),
        (ev.TimerFired("shadow", total=True), "job_timeout"),
        (ev.CancelAsked(), "cancelled_locally"),
        (ev.Failed("FAILED", "no_heartbeat"), "no_heartbeat"),
        (ev.PinAsked("exhibition"), "pinned"),
    ],
)
def test_a_comparison_has_every_end_that_an_update_has(event: ev.Event, reason: str) -> None:
    state, effects = walk(RUNS_1, *COMPARED, event)
    assert state.result
    assert state.result.reason == reason
    assert fx.Revert(s.Slot("b", model(2))) in effects
    gone, _ = walk(RUNS_1, *COMPARED, ev.JobGone(), ev.Reverted())
    assert (gone.phase, gone.current) == ("idle", RUNS_1.current)
