"""The update story as a pure table, driven through every order of events a device could meet."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgepack.messages import Shadow
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
)
EVENTS = st.one_of(
    st.sampled_from([
        s.Booted(), s.CancelAsked(), s.Unreachable(), s.Retry(), s.Downloaded(), s.Damaged(),
        s.Staged(), s.Loaded(), s.Accepting(), s.Confirmed(), s.Reverted(), s.JobGone(), s.Clear(),
        s.Died(),
    ]),
    st.builds(s.JobSeen, JOBS),
    st.builds(s.JobTaken, st.sampled_from(["job-1", "job-2"])),
    st.builds(s.JobGone, st.sampled_from(["job-1", "job-2"])),
    st.builds(s.OutcomeTaken, st.sampled_from(["job-1", "job-2"])),
    st.builds(s.InstallAsked, JOBS, MODELS),
    st.builds(s.RollbackAsked, JOBS),
    st.builds(s.Approved, MODELS),
    st.builds(s.Failed, st.sampled_from(["FAILED", "REJECTED"]), st.just("why")),
    st.builds(s.Checked, st.booleans(), st.none() | st.floats(0, 1)),
    st.builds(s.Judged, st.booleans(), st.just("why")),
    st.builds(s.Shadowed, st.booleans(), st.just("why"), st.just({"samples": 20})),
    st.builds(s.TimerFired, st.sampled_from(PHASES), st.booleans()),
    st.builds(s.Held, HOLDS),
    st.builds(s.Troubled, st.just("storage")),
    st.builds(s.PinAsked, st.sampled_from(["", "exhibition"])),
)  # fmt: skip


@settings(max_examples=600)
@given(STATES, EVENTS)
def test_the_table_is_total_and_stays_in_its_phases(state: s.State, event: s.Event) -> None:
    after, effects = transition(state, event)
    assert after.phase in PHASES
    assert isinstance(effects, tuple)
    if (state.phase, type(event)) not in TABLE:
        assert after == state
        assert all(isinstance(effect, s.Log) for effect in effects)


@settings(max_examples=300)
@given(STATES, EVENTS)
def test_only_a_good_verdict_changes_what_is_current(state: s.State, event: s.Event) -> None:
    after, _ = transition(state, event)
    if after.current != state.current:
        assert state.phase == "probation"
        assert event == s.Judged(True, "why")
        assert after.current == state.candidate


def test_every_phase_but_idle_has_a_deadline_and_a_way_on() -> None:
    for phase in PHASES:
        slot = s.Slot("a", model(1))
        state = s.State(phase=phase, current=slot, job=job(1), candidate=slot)
        assert (deadline(state) is None) == (phase == "idle")
        if phase != "idle":
            after, effects = transition(state, s.TimerFired(phase))
            assert after.phase != phase or effects, f"{phase} would last for ever"


@settings(max_examples=300)
@given(STATES)
def test_a_deadline_of_another_phase_means_nothing(state: s.State) -> None:
    for phase in PHASES:
        if phase != state.phase:
            assert transition(state, s.TimerFired(phase)) == (state, ())


def walk(state: s.State, *events: s.Event) -> tuple[s.State, list[s.Effect]]:
    effects: list[s.Effect] = []
    for event in events:
        state, more = transition(state, event)
        effects += more
    return state, effects


GOOD = (
    s.Downloaded(), s.Staged(), s.Loaded(), s.Checked(golden=True, score=0.95), s.Accepting(),
    s.Judged(good=True), s.Confirmed(),
)  # fmt: skip
RUNS_1 = s.State(current=s.Slot("a", model(1)))


def begun(version: int = 2) -> tuple[s.Event, ...]:
    taken = s.JobTaken(f"job-{version}")
    return s.JobSeen(job(version)), taken, s.Clear(), s.Approved(model(version))


def test_a_good_model_is_committed_reported_and_the_old_one_kept() -> None:
    state, effects = walk(RUNS_1, *begun(), *GOOD)
    assert state.phase == "idle"
    assert state.current == s.Slot("b", model(2))
    assert state.previous == s.Slot("a", model(1))
    assert state.outcome == s.Outcome("job-2", "SUCCEEDED")
    kinds = [type(e) for e in effects if not isinstance(e, s.Tell | s.Consider)]
    assert kinds == [
        s.Approve, s.Download, s.Stage, s.Load, s.Check, s.Switch, s.Drain, s.Publish, s.Confirm,
    ]  # fmt: skip
    assert walk(state, s.OutcomeTaken("job-2"))[0].outcome is None


@pytest.mark.parametrize(
    ("checked", "reason"),
    [
        (s.Checked(golden=False, score=1.0), "golden_mismatch"),
        (s.Checked(golden=True, score=0.89), "acceptance_below_limit"),
        (s.Checked(golden=True, score=None), "acceptance_below_limit"),
    ],
)
def test_a_model_that_fails_its_proof_never_answers(checked: s.Checked, reason: str) -> None:
    state, effects = walk(RUNS_1, *begun(), *GOOD[:3], checked, s.Reverted())
    assert state.current == RUNS_1.current
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("REJECTED", reason)
    assert not any(isinstance(effect, s.Switch) for effect in effects)
    assert s.Revert(s.Slot("b", model(2))) in effects


def test_a_model_that_fails_in_probation_is_rolled_back_and_said_so() -> None:
    state, effects = walk(RUNS_1, *begun(), *GOOD[:5], s.Judged(good=False, reason="error_rate"))
    assert state.phase == "rolling_back"
    (event,) = [effect for effect in effects if isinstance(effect, s.Publish)]
    assert (event.type, event.bundle, event.reason) == ("rolled_back", "digits@1.0.0", "error_rate")
    assert event.detail["release"] == "digits@2.0.0"


def test_a_candidate_that_restarts_the_device_is_given_up() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[:5])
    for _ in range(MAX_BOOTS):
        state, _ = walk(state, s.Booted(), *GOOD[2:5])
        assert state.phase == "probation"
    state, _ = walk(state, s.Booted(), s.Reverted())
    assert state.current == RUNS_1.current
    assert state.outcome
    assert state.outcome.reason == "restart_loop"


@pytest.mark.parametrize("proven", [2, 3, 4, 5])
def test_a_candidate_that_dies_once_is_loaded_again_and_twice_is_given_up(proven: int) -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[:proven])
    state, effects = walk(state, s.Died({"code": -9}))
    assert state.phase == "staged"
    assert s.Load(s.Slot("b", model(2))) in effects
    state, _ = walk(state, s.Died({"code": -9}), s.Reverted())
    assert state.current == RUNS_1.current
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("FAILED", "runner_exited")
    assert state.deaths == 0


def test_what_ended_here_is_not_begun_again() -> None:
    state, _ = walk(RUNS_1, *begun(), s.Failed("FAILED", "disk_full"), s.Reverted())
    again, effects = walk(state, s.JobSeen(job(2)))
    assert again.phase == "idle"
    assert effects == [s.Tell(state.outcome, "idle")]  # type: ignore[arg-type]
    heard, _ = walk(state, s.OutcomeTaken("job-2"), s.JobSeen(job(2)))
    assert heard.phase == "idle"


@pytest.mark.parametrize("count", range(1, 7))
def test_the_fleet_can_cancel_at_any_time(count: int) -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[: count - 1], s.JobGone())
    assert state.phase == "rolling_back"
    state, _ = walk(state, s.Reverted())
    assert (state.phase, state.current, state.outcome) == ("idle", RUNS_1.current, None)


def test_a_person_goes_back_and_the_fleet_is_told_of_the_override() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD, s.OutcomeTaken("job-2"))
    state, effects = walk(state, s.RollbackAsked(job(1, local=True)), *GOOD[2:])
    assert (state.current, state.previous) == (s.Slot("a", model(1)), s.Slot("b", model(2)))
    assert not any(isinstance(effect, (s.Stage, s.Download, s.Tell)) for effect in effects)
    (event,) = [effect for effect in effects if isinstance(effect, s.Publish)]
    assert event.detail == {"override": True}


def test_a_failed_way_back_keeps_the_previous_slot() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD, s.OutcomeTaken("job-2"))
    state, effects = walk(
        state, s.RollbackAsked(job(1, local=True)), s.Failed("REJECTED", "digest_mismatch")
    )
    assert s.Revert(None) in effects
    assert state.previous == s.Slot("a", model(1))


class Device(RuleBasedStateMachine):
    """A device with a disk and two runners, whose power can be cut between any two effects."""

    def __init__(self) -> None:
        super().__init__()
        self.state = s.State()
        self.disk: dict[str, s.Model] = {}
        self.todo: list[s.Effect] = []
        self.serving: s.Slot | None = None
        self.candidate: s.Slot | None = None
        self.answers: set[str] = set()
        self.versions = 0

    def on(self, event: s.Event) -> None:
        self.state, effects = transition(self.state, event)
        self.todo += effects

    def do(self, effect: s.Effect) -> None:
        match effect:
            case s.Stage(slot):
                assert slot != self.state.current
                assert self.state.current is None or slot.name != self.state.current.name
                self.disk[slot.name] = slot.model
            case s.Load(slot):
                self.candidate = slot
            case s.Mirror():
                assert "candidate" not in self.answers
            case s.Switch():
                self.answers.add("candidate")
            case s.Drain():
                self.answers.discard("serving")
            case s.Confirm(slot):
                self.serving, self.candidate, self.answers = slot, None, {"serving"}
            case s.Revert(discard):
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
        self.on(s.Booted())

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
        self.on(s.JobSeen(job(self.versions, shadow=shadow)))
        self.on(s.JobTaken(f"job-{self.versions}"))
        self.on(s.Clear())

    @precondition(lambda self: self.state.phase == "idle" and self.state.previous)
    @rule()
    def a_person_goes_back(self) -> None:
        self.do_all()
        self.on(s.RollbackAsked(s.Job("local", "x", "y", local=True)))

    @rule(good=st.booleans())
    def the_step_ends(self, good: bool) -> None:
        self.do_all()
        steps: dict[str, s.Event] = {
            "deferred": s.Clear(),
            "checking": s.Approved(model(self.versions)),
            "downloading": s.Downloaded(),
            "verifying": s.Staged() if good else s.Damaged(),
            "staged": s.Loaded(),
            "self_test": s.Checked(golden=True, score=1.0 if good else 0.1),
            "shadow": s.Shadowed(good, "shadow_disagrees", {"samples": 20}),
            "switching": s.Accepting(),
            "probation": s.Judged(good, "error_rate"),
            "committed": s.Confirmed(),
            "rolling_back": s.Reverted(),
            "idle": s.OutcomeTaken(f"job-{self.versions}"),
        }
        if self.state.phase in steps:
            self.on(steps[self.state.phase])

    @rule(event=EVENTS.filter(lambda e: not isinstance(e, (s.Judged, s.Approved, s.InstallAsked))))
    def something_out_of_order(self, event: s.Event) -> None:
        self.do_all()
        if (self.state.phase, type(event)) not in TABLE:
            self.on(event)

    @rule(reason=st.sampled_from(["timer", "cancel", "failure"]))
    def it_goes_wrong(self, reason: str) -> None:
        self.do_all()
        self.on(
            {
                "timer": s.TimerFired(self.state.phase),
                "cancel": s.JobGone(),
                "failure": s.Failed("FAILED", "x"),
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
                self.on(s.JobTaken(self.state.job.id if self.state.job else ""))
                self.on(s.Clear())
        self.do_all()
        assert self.state.phase == "idle"
        assert self.state.current in (old, wanted) or (
            self.state.current and self.state.current.model == model(self.versions)
        )


Device.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDevice = Device.TestCase


def test_states_survive_the_journal_unchanged() -> None:
    import msgspec

    state, _ = walk(RUNS_1, *begun(), *GOOD[:3], s.Checked(golden=True, score=0.1))
    state = replace(state, outcome=s.Outcome("j", "FAILED", "x", {"score": 0.1}))
    assert msgspec.json.decode(msgspec.json.encode(state), type=s.State) == state


# -- waiting for a better moment, trouble that passes, pins

LOCKED = s.Held(s.Hold("lock", 5e9, "exhibition"))
OFFERED = (s.JobSeen(job(2)), s.JobTaken("job-2"))


def test_a_bad_moment_defers_and_the_fleet_is_told_why_and_until_when() -> None:
    state, effects = walk(RUNS_1, *OFFERED, LOCKED)
    assert state.phase == "deferred"
    told = s.Outcome("job-2", "IN_PROGRESS", "lock", {"until": 5e9, "message": "exhibition"})
    assert s.Tell(told, "deferred") in effects
    assert s.Recheck(LOCKED.hold) in effects
    same, effects = walk(state, LOCKED)
    assert same == state, "nothing is written while it goes on"
    assert effects == [s.Recheck(LOCKED.hold)]
    state, effects = walk(state, s.Clear())
    assert state.phase == "checking"
    assert s.Approve(job(2)) in effects


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_moment_that_turns_bad_stops_what_is_under_way(count: int) -> None:
    before = (*begun(), *GOOD)[: 3 + count]
    state, effects = walk(RUNS_1, *before, LOCKED)
    assert state.phase == "deferred"
    assert effects.index(s.Halt()) < effects.index(s.Recheck(LOCKED.hold))
    assert not any(isinstance(effect, s.Revert) for effect in effects), "what came is kept"
    state, _ = walk(state, s.Clear(), s.Approved(model(2)), *GOOD, s.OutcomeTaken("job-2"))
    assert state.current == s.Slot("b", model(2))


@pytest.mark.parametrize("count", range(3, 7))
def test_what_has_begun_to_load_goes_through(count: int) -> None:
    before, _ = walk(RUNS_1, *begun(), *GOOD[: count - 1])
    assert transition(before, LOCKED)[0] == before


def test_deferral_ends_by_its_deadline_by_cancel_and_by_a_newer_job() -> None:
    waiting, _ = walk(RUNS_1, *OFFERED, LOCKED)
    late, _ = walk(waiting, s.TimerFired("deferred", total=True), s.Reverted())
    assert late.outcome
    assert (late.outcome.status, late.outcome.reason) == ("FAILED", "deferred_too_long")
    assert "lock" in late.outcome.detail["message"]
    for end in (s.JobGone(), s.CancelAsked(), s.JobSeen(job(3))):
        state, _ = walk(waiting, end, s.Reverted())
        assert (state.phase, state.current, state.hold) == ("idle", RUNS_1.current, None)


def test_trouble_that_may_pass_is_tried_again_a_few_times() -> None:
    state, _ = walk(RUNS_1, *begun())
    for _ in range(MAX_TRIES):
        state, effects = walk(state, s.Troubled("storage"))
        assert (state.phase, effects) == ("downloading", [s.TryLater()])
        state, effects = walk(state, s.Retry())
        assert effects == [s.Download(model(2))]
    state, _ = walk(state, s.Troubled("storage"), s.Reverted())
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("FAILED", "storage")
    assert state.tries == 0


def test_a_job_that_takes_too_long_in_all_ends_but_not_one_that_is_judged() -> None:
    state, _ = walk(RUNS_1, *begun(), s.TimerFired("downloading", total=True), s.Reverted())
    assert state.outcome
    assert (state.outcome.status, state.outcome.reason) == ("FAILED", "job_timeout")


def test_a_pinned_device_rejects_jobs_until_it_is_not() -> None:
    pinned, _ = walk(RUNS_1, s.PinAsked("exhibition"))
    state, effects = walk(pinned, s.JobSeen(job(2)))
    no = s.Outcome("job-2", "REJECTED", "pinned", {"message": "exhibition"})
    assert (state.phase, state.outcome, state.pinned) == ("idle", no, "exhibition")
    assert s.Tell(no, "idle") in effects
    state, _ = walk(state, s.OutcomeTaken("job-2"), s.PinAsked(""), s.JobSeen(job(3)))
    assert state.phase == "offered"


@pytest.mark.parametrize("count", range(1, 8))
def test_a_pin_ends_what_is_under_way(count: int) -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[: count - 1])
    state, _ = walk(state, s.PinAsked("exhibition"))
    if count < 7:
        state, _ = walk(state, s.Reverted())
        assert state.outcome
        assert (state.outcome.status, state.outcome.reason) == ("REJECTED", "pinned")
        assert state.current == RUNS_1.current
    assert state.pinned == "exhibition"


def test_a_job_that_goes_round_in_circles_is_ended() -> None:
    state, _ = walk(RUNS_1, *begun())
    state = replace(state, steps=MAX_STEPS)
    state, _ = walk(state, s.Downloaded(), s.Reverted())
    assert state.outcome
    assert state.outcome.reason == "restart_loop"
    assert state.current == RUNS_1.current


def test_a_failed_download_does_not_cost_the_way_back() -> None:
    """Both use the same slot, and nothing of the new model is in it yet."""
    two, _ = walk(RUNS_1, *begun(), *GOOD, s.OutcomeTaken("job-2"))
    assert two.previous == s.Slot("a", model(1))
    state, effects = walk(two, *begun(3), s.Failed("FAILED", "disk_full"))
    assert state.candidate == s.Slot("a", model(3))
    assert s.Revert(None) in effects
    assert state.previous == s.Slot("a", model(1))


RUNS_2 = s.State(current=s.Slot("b", model(2)), previous=s.Slot("a", model(1)))


def test_a_revocation_is_told_once_and_costs_nothing_if_the_model_may_stay() -> None:
    said = s.Stood(model(2).digest, revoked=True)
    state, effects = walk(RUNS_2, said)
    (told,) = effects
    assert isinstance(told, s.Publish)
    assert (told.type, told.detail) == ("revoked", {"policy": "keep"})
    assert walk(state, said) == (state, [])
    assert (state.current, state.previous) == (RUNS_2.current, RUNS_2.previous)


def test_a_model_that_must_stop_gives_way_to_the_one_before_if_that_is_allowed() -> None:
    said = s.Stood(model(2).digest, revoked=True, stop=True, back=True)
    state, effects = walk(RUNS_2, said)
    assert s.Retire(s.Slot("b", model(2))) in effects
    assert s.Load(s.Slot("a", model(1))) in effects
    assert state.current is None
    state, _ = walk(state, *GOOD[2:])
    assert (state.current, state.previous) == (s.Slot("a", model(1)), None)


def test_a_model_that_must_stop_leaves_nothing_if_nothing_is_allowed() -> None:
    said = s.Stood(model(2).digest, revoked=True, stop=True, back=False)
    state, effects = walk(RUNS_2, said)
    assert s.Retire(s.Slot("b", model(2))) in effects
    assert (state.phase, state.current, state.previous) == ("idle", None, None)
    assert walk(state, *begun(3), *GOOD)[0].current == s.Slot("a", model(3))


def test_what_is_said_of_another_model_or_during_an_update_changes_nothing() -> None:
    late = s.Stood(model(1).digest, revoked=True, stop=True)
    assert walk(RUNS_2, late) == (RUNS_2, [])
    busy, _ = walk(RUNS_2, *begun(3))
    assert walk(busy, s.Stood(model(2).digest, revoked=True, stop=True)) == (busy, [])


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_a_job_writes_little_and_commits_once(events: list[s.Event]) -> None:
    state, commits, stores = RUNS_1, 0, 0
    for event in (*begun(), *events):
        after, effects = transition(state, event)
        if after.job is None or state.job is None or after.job.id != state.job.id:
            commits = stores = 0
        commits += sum(isinstance(e, s.Confirm) for e in effects if state.phase != "committed")
        moment = isinstance(event, s.Held | s.Clear | s.PinAsked | s.OutcomeTaken)
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
    state, _ = walk(RUNS_1, s.JobSeen(job(2)), s.JobTaken("job-2"), s.Clear())
    for _ in range(MAX_TRIES):
        state, effects = transition(state, s.Damaged())
        assert (state.phase, effects) == ("checking", (s.TryLater(),))
    state, _ = transition(state, s.Damaged())
    assert state.result
    assert state.result.reason == "damaged_blob"


def test_a_person_can_decline_what_is_only_offered() -> None:
    state, effects = walk(RUNS_1, s.JobSeen(job(2)), s.CancelAsked())
    assert state.phase == "idle"
    assert state.outcome == s.Outcome("job-2", "FAILED", "cancelled_locally")
    assert s.Tell(state.outcome, "idle") in effects
    assert transition(state, s.JobSeen(job(2)))[0].phase == "idle", "it does not come back"


# -- the comparison with the current model

SHADOW = Shadow(seconds=5, min_agreement=0.9)
SEEN = {"samples": 40, "agreement": 0.5, "p95_ratio": 1.1, "dropped": 2}
COMPARED = (
    s.JobSeen(job(2, shadow=SHADOW)), s.JobTaken("job-2"), s.Clear(), s.Approved(model(2)),
    *GOOD[:4],
)  # fmt: skip


def test_a_candidate_is_compared_before_it_answers_and_the_fleet_hears_of_it_in_the_end() -> None:
    state, effects = walk(RUNS_1, *COMPARED)
    assert state.phase == "shadow"
    assert effects[-1] == s.Mirror(SHADOW)
    assert not any(isinstance(effect, s.Switch) for effect in effects)
    state, effects = walk(state, s.Shadowed(True, "", SEEN), *GOOD[4:])
    assert s.Switch() in effects
    assert state.current == s.Slot("b", model(2))
    assert state.outcome == s.Outcome("job-2", "SUCCEEDED", "", {"shadow": SEEN})
    assert state.shadow == {}, "nothing of it is left for the next job"


def test_a_candidate_that_disagrees_never_answers() -> None:
    state, effects = walk(
        RUNS_1, *COMPARED, s.Shadowed(False, "shadow_disagrees", SEEN), s.Reverted()
    )
    assert not any(isinstance(effect, s.Switch) for effect in effects)
    assert state.current == RUNS_1.current
    assert state.outcome == s.Outcome("job-2", "FAILED", "shadow_disagrees", {"shadow": SEEN})
    (told,) = [effect for effect in effects if isinstance(effect, s.Publish)]
    assert (told.type, told.detail["shadow"]) == ("failed", SEEN)


def test_without_being_asked_nothing_is_compared_nor_what_a_person_installs() -> None:
    state, _ = walk(RUNS_1, *begun(), *GOOD[:4])
    assert state.phase == "switching"
    state, _ = walk(RUNS_1, s.InstallAsked(job(2, local=True), model(2)), *GOOD[:4])
    assert state.phase == "switching"


@pytest.mark.parametrize("cut", [s.Booted(), s.Died()])
def test_a_comparison_that_is_cut_short_begins_again_and_one_that_is_over_does_not(
    cut: s.Event,
) -> None:
    begun_again, _ = walk(RUNS_1, *COMPARED, cut)
    assert (begun_again.phase, begun_again.shadow) == ("staged", {})
    assert walk(begun_again, *GOOD[2:4])[0].phase == "shadow"
    over, _ = walk(RUNS_1, *COMPARED, s.Shadowed(True, "", SEEN), s.Accepting(), cut)
    over, _ = walk(over, *GOOD[2:4])
    assert (over.phase, over.shadow) == ("switching", SEEN)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (s.TimerFired("shadow"), "no_verdict"),
        (s.TimerFired("shadow", total=True), "job_timeout"),
        (s.CancelAsked(), "cancelled_locally"),
        (s.Failed("FAILED", "no_heartbeat"), "no_heartbeat"),
        (s.PinAsked("exhibition"), "pinned"),
    ],
)
def test_a_comparison_has_every_end_that_an_update_has(event: s.Event, reason: str) -> None:
    state, effects = walk(RUNS_1, *COMPARED, event)
    assert state.result
    assert state.result.reason == reason
    assert s.Revert(s.Slot("b", model(2))) in effects
    gone, _ = walk(RUNS_1, *COMPARED, s.JobGone(), s.Reverted())
    assert (gone.phase, gone.current) == ("idle", RUNS_1.current)
