"""The whole update story: `transition(state, event) -> (state, effects)`. Does none of it.

    idle -> offered -> checking -> downloading -> verifying -> staged -> self_test -> switching
         -> probation -> committed -> idle
    any  -> rolling_back -> idle

Three rules hold it together. The state is persisted *before* the effects run, and effects may
run twice; so a power cut is only another `Booted`. Entering a phase asks for everything that
phase needs, so that resuming one is entering it again. Whatever goes wrong goes through
`rolling_back`, so there is one way out, and at its end the current model serves alone.

The table is total: a pair that is not in it changes nothing and is logged.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

from edgepack_agent.core.state import (
    Accepting,
    Approve,
    Approved,
    Booted,
    CancelAsked,
    Check,
    Checked,
    Confirm,
    Confirmed,
    Damaged,
    Died,
    Download,
    Downloaded,
    Drain,
    Effect,
    Event,
    Failed,
    InstallAsked,
    Job,
    JobGone,
    JobSeen,
    JobTaken,
    Judged,
    Load,
    Loaded,
    Log,
    Outcome,
    OutcomeTaken,
    Phase,
    Publish,
    Retry,
    Revert,
    Reverted,
    RollbackAsked,
    Slot,
    Stage,
    Staged,
    State,
    Status,
    Switch,
    Tell,
    TimerFired,
    TryLater,
    Unreachable,
)

__all__ = ["MAX_BOOTS", "MAX_DEATHS", "MAX_REPAIRS", "PHASES", "TABLE", "deadline", "transition"]

PHASES: tuple[Phase, ...] = get_args(Phase)
MAX_BOOTS = 3
"""Restarts that a candidate may see before it is held to be their cause."""
MAX_DEATHS = 1
"""Ends of its runner that a candidate may see: one can be the box's fault."""
MAX_REPAIRS = 2
Step = tuple[State, tuple[Effect, ...]]
Rule = Callable[[State, Any], Step]


def transition(state: State, event: Event) -> Step:
    """Return the state after EVENT, and what is to be done once it is persisted."""
    if isinstance(event, TimerFired) and event.phase != state.phase:
        return state, ()
    rule = TABLE.get((state.phase, type(event)))
    if rule is None:
        return state, (Log(f"{type(event).__name__} means nothing in {state.phase}"),)
    return rule(state, event)


def deadline(state: State) -> float | None:
    """Return the seconds that STATE's phase may last; None: for ever, which only idle may."""
    job = state.job
    if state.phase in {"checking", "downloading"}:
        return job.timeout_s if job else 0.0
    if state.phase == "probation":
        return (job.probation_s if job else 0.0) + 60.0
    return _SECONDS.get(state.phase)


_SECONDS: dict[Phase, float] = {
    "offered": 60.0,
    "verifying": 900.0,
    "staged": 180.0,
    "self_test": 300.0,
    "switching": 30.0,
    "committed": 30.0,
    "rolling_back": 30.0,
}
_TOO_LATE: dict[Phase, tuple[Status, str]] = {
    "checking": ("FAILED", "unreachable"),
    "downloading": ("FAILED", "unreachable"),
    "verifying": ("FAILED", "staging_timeout"),
    "staged": ("REJECTED", "load_timeout"),
    "self_test": ("REJECTED", "self_test_timeout"),
    "switching": ("FAILED", "switch_timeout"),
    "probation": ("FAILED", "no_verdict"),
}


# -- entering a phase: the new state, and all that the phase needs


def _enter(phase: Phase, state: State, *effects: Effect, **changes: Any) -> Step:
    entered: State = replace(state, phase=phase, **changes)
    return entered, (*_progress(entered), *effects, *_NEEDS[phase](entered))


def _progress(state: State) -> tuple[Effect, ...]:
    """Keep the fleet informed; what it must not miss is an `Outcome` instead."""
    if state.job is None or state.job.local or state.phase in {"idle", "committed", "rolling_back"}:
        return ()
    return (Tell(Outcome(state.job.id, "IN_PROGRESS"), state.phase),)


def _needs_approval(state: State) -> tuple[Effect, ...]:
    return (Approve(state.job),) if state.job else ()


def _needs_commit(state: State) -> tuple[Effect, ...]:
    slot = state.current
    if slot is None:
        return ()
    detail = {"override": True} if state.job and state.job.local else {}
    event = Publish("activated", slot.model.release, slot.model.digest, "", detail)
    return (event, Confirm(slot))


def _needs_revert(state: State) -> tuple[Effect, ...]:
    discard = state.candidate if state.candidate != state.previous else None
    result = state.result
    if result is None:
        return (Revert(discard),)
    kinds = {"REJECTED": "rejected", "CANCELED": "cancelled"}
    kind = "rolled_back" if state.exposed else kinds.get(result.status, "failed")
    active = state.current.model if state.current else None
    tried = {"release": state.job.release} if state.job else {}
    event = Publish(
        kind,
        active.release if active else None,
        active.digest if active else None,
        result.reason,
        tried | result.detail,
    )
    return (event, Revert(discard))


def _needs_telling(state: State) -> tuple[Effect, ...]:
    return (Tell(state.outcome, "idle"),) if state.outcome else ()


def _with_candidate(ask: Callable[[Slot], Effect]) -> Callable[[State], tuple[Effect, ...]]:
    return lambda state: (ask(state.candidate),) if state.candidate else ()


_NEEDS: dict[Phase, Callable[[State], tuple[Effect, ...]]] = {
    "idle": _needs_telling,
    "offered": lambda _: (),
    "checking": _needs_approval,
    "downloading": _with_candidate(lambda slot: Download(slot.model)),
    "verifying": _with_candidate(Stage),
    "staged": _with_candidate(Load),
    "self_test": _with_candidate(lambda slot: Check(slot.model.exam)),
    "switching": lambda _: (Switch(),),
    "probation": lambda state: (Drain(state.job.probation_s if state.job else 0.0),),
    "committed": _needs_commit,
    "rolling_back": _needs_revert,
}


# -- the rules, in the order of the story


def _offer(state: State, event: JobSeen) -> Step:
    if state.outcome and state.outcome.job == event.job.id:
        return state, _needs_telling(state)
    if event.job.id == state.ended:
        return state, (Log(f"job {event.job.id} has ended here"),)
    if state.current and state.current.model.path == event.job.target:
        return _already_there(state, event.job)
    return _enter("offered", _fresh(state), job=event.job, outcome=None)


def _already_there(state: State, job: Job) -> Step:
    done = Outcome(job.id, "SUCCEEDED", "already_active")
    return _enter("idle", _fresh(state), outcome=done, ended=job.id)


def _fresh(state: State) -> State:
    return replace(
        state, job=None, candidate=None, result=None, boots=0, repairs=0, deaths=0, exposed=False
    )


def _same_or_cancel(state: State, event: JobSeen) -> Step:
    if state.job is None or state.job.local or state.job.id == event.job.id:
        return state, ()
    return _cancel(state, "replaced")


def _offer_again(state: State, event: JobSeen) -> Step:
    return _enter("offered", state, job=event.job)


def _taken(state: State, event: JobTaken) -> Step:
    if state.job and state.job.id == event.job:
        return _enter("checking", state)
    return state, ()


def _not_taken(state: State, _event: Event) -> Step:
    return _enter("idle", _fresh(state))


def _gone(state: State, event: JobGone) -> Step:
    if state.job is None or state.job.local or event.job not in {"", state.job.id}:
        return state, ()
    return _cancel(state, "cancelled")


def _cancel_asked(state: State, _event: CancelAsked) -> Step:
    return _fail(state, "FAILED", "cancelled_locally")


def _cancel(state: State, reason: str) -> Step:
    return _fail(state, "CANCELED", reason)


def _install(state: State, event: InstallAsked) -> Step:
    slot = _free_slot(state, event)
    return _enter("downloading", _fresh(state), job=event.job, candidate=slot)


def _approved(state: State, event: Approved) -> Step:
    return _enter("downloading", state, candidate=_free_slot(state, event))


def _free_slot(state: State, event: Approved | InstallAsked) -> Slot:
    return Slot("b" if state.current and state.current.name == "a" else "a", event.model)


def _go_back(state: State, event: RollbackAsked) -> Step:
    if state.previous is None:
        return state, (Log("there is no previous model to go back to"),)
    return _enter("staged", _fresh(state), job=event.job, candidate=state.previous)


def _downloaded(state: State, _event: Downloaded) -> Step:
    # The slot is about to be overwritten: what was in it is no longer there to go back to.
    taken = state.candidate.name if state.candidate else None
    kept = state.previous if state.previous and state.previous.name != taken else None
    return _enter("verifying", state, previous=kept)


def _damaged(state: State, _event: Damaged) -> Step:
    if state.repairs >= MAX_REPAIRS:
        return _fail(state, "FAILED", "digest_mismatch")
    return _enter("downloading", state, repairs=state.repairs + 1)


def _staged(state: State, _event: Staged) -> Step:
    return _enter("staged", state)


def _loaded(state: State, _event: Loaded) -> Step:
    return _enter("self_test", state)


def _checked(state: State, event: Checked) -> Step:
    if not event.golden:
        return _fail(state, "REJECTED", "golden_mismatch", event.detail)
    exam = state.candidate.model.exam if state.candidate else None
    if exam and (event.score is None or event.score < exam.min_score):
        return _fail(state, "REJECTED", "acceptance_below_limit", event.detail)
    return _enter("switching", state, exposed=True)


def _accepting(state: State, _event: Accepting) -> Step:
    return _enter("probation", state)


def _judged(state: State, event: Judged) -> Step:
    if not event.good:
        return _fail(state, "FAILED", event.reason, event.detail)
    back = state.current if state.current != state.candidate else state.previous
    return _enter("committed", state, current=state.candidate, previous=back)


def _confirmed(state: State, _event: Confirmed) -> Step:
    done = Outcome(state.job.id, "SUCCEEDED") if state.job else None
    return _finish(state, done)


def _reverted(state: State, _event: Reverted) -> Step:
    return _finish(state, state.result)


def _finish(state: State, done: Outcome | None) -> Step:
    local = state.job is None or state.job.local
    told = None if local or done is None or done.status == "CANCELED" else done
    ended = state.ended if local or state.job is None else state.job.id
    return _enter("idle", _fresh(state), outcome=told or state.outcome, ended=ended)


def _fail(state: State, status: Status, reason: str, detail: dict[str, Any] | None = None) -> Step:
    job = state.job.id if state.job else ""
    return _enter("rolling_back", state, result=Outcome(job, status, reason, detail or {}))


def _failed(state: State, event: Failed) -> Step:
    return _fail(state, event.status, event.reason, event.detail)


def _too_late(state: State, _event: TimerFired) -> Step:
    return _fail(state, *_TOO_LATE[state.phase])


def _pause(state: State, _event: Unreachable) -> Step:
    return state, (TryLater(),)


def _again(state: State, _event: Event) -> Step:
    return state, _NEEDS[state.phase](state)


def _resume_loaded(state: State, _event: Booted) -> Step:
    """Begin again with loading: what a runner knew is gone, what is on disk is not."""
    if state.boots >= MAX_BOOTS:
        return _fail(state, "FAILED", "restart_loop")
    return _enter("staged", state, boots=state.boots + 1)


def _died(state: State, event: Died) -> Step:
    """Load it once more: one death may be the box's fault, a second one is the model's."""
    if state.deaths >= MAX_DEATHS:
        return _fail(state, "FAILED", "runner_exited", event.detail)
    return _enter("staged", state, deaths=state.deaths + 1)


def _told(state: State, event: OutcomeTaken) -> Step:
    if state.outcome and state.outcome.job == event.job:
        return replace(state, outcome=None), ()
    return state, ()


def _nothing(state: State, _event: Event) -> Step:
    return state, ()


# -- the table. Columns: phase, event, rule.

_STORY: tuple[tuple[Phase, type[Any], Rule], ...] = (
    ("idle",         Booted,        _again),
    ("idle",         JobSeen,       _offer),
    ("idle",         JobGone,       _nothing),
    ("idle",         InstallAsked,  _install),
    ("idle",         RollbackAsked, _go_back),
    ("idle",         Retry,         _again),
    ("idle",         CancelAsked,   _nothing),

    ("offered",      Booted,        _not_taken),
    ("offered",      JobSeen,       _offer_again),
    ("offered",      JobTaken,      _taken),
    ("offered",      JobGone,       _not_taken),
    ("offered",      TimerFired,    _not_taken),

    ("checking",     Booted,        _again),
    ("checking",     Approved,      _approved),
    ("checking",     Unreachable,   _pause),
    ("checking",     Retry,         _again),

    ("downloading",  Booted,        _again),
    ("downloading",  Downloaded,    _downloaded),
    ("downloading",  Damaged,       _damaged),
    ("downloading",  Unreachable,   _pause),
    ("downloading",  Retry,         _again),

    ("verifying",    Booted,        _again),
    ("verifying",    Staged,        _staged),
    ("verifying",    Damaged,       _damaged),

    ("staged",       Booted,        _resume_loaded),
    ("staged",       Loaded,        _loaded),
    ("staged",       Died,          _died),

    ("self_test",    Booted,        _resume_loaded),
    ("self_test",    Checked,       _checked),
    ("self_test",    Died,          _died),

    ("switching",    Booted,        _resume_loaded),
    ("switching",    Accepting,     _accepting),
    ("switching",    Died,          _died),

    ("probation",    Booted,        _resume_loaded),
    ("probation",    Judged,        _judged),
    ("probation",    Died,          _died),

    # Too late to roll back: what was judged good is finished, however often it takes.
    ("committed",    Booted,        _again),
    ("committed",    Confirmed,     _confirmed),
    ("committed",    JobSeen,       _nothing),
    ("committed",    JobGone,       _nothing),
    ("committed",    TimerFired,    _again),

    # Nor can going back fail: it is repeated until it is done.
    ("rolling_back", Booted,        _again),
    ("rolling_back", Reverted,      _reverted),
    ("rolling_back", JobSeen,       _nothing),
    ("rolling_back", JobGone,       _nothing),
    ("rolling_back", Failed,        _nothing),
    ("rolling_back", Died,          _nothing),
    ("rolling_back", TimerFired,    _again),
)  # fmt: skip

_UNDER_WAY: tuple[Phase, ...] = (
    "checking", "downloading", "verifying", "staged", "self_test", "switching", "probation",
)  # fmt: skip
"""Phases in which a candidate can be given up, all in the same way."""
_GIVING_UP: tuple[tuple[type[Any], Rule], ...] = (
    (Failed,      _failed),
    (JobSeen,     _same_or_cancel),
    (JobGone,     _gone),
    (CancelAsked, _cancel_asked),
    (TimerFired,  _too_late),
    (JobTaken,    _nothing),
)  # fmt: skip

TABLE: dict[tuple[Phase, type[Any]], Rule] = (
    {(phase, OutcomeTaken): _told for phase in PHASES}
    | {(phase, event): rule for phase in _UNDER_WAY for event, rule in _GIVING_UP}
    | {(phase, event): rule for phase, event, rule in _STORY}
)
