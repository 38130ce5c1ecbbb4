"""The whole update story: `transition(state, event) -> (state, effects)`. Does none of it.

    idle -> offered -> deferred -> checking -> downloading -> verifying -> staged -> self_test
         -> shadow -> switching -> probation -> committed -> idle
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

from edgepack_agent.core.deadlines import MAX_TRIES, TOO_LATE
from edgepack_agent.core.effects import Consider, Halt, Log, Publish, Recheck, Retire, TryLater
from edgepack_agent.core.events import (
    Accepting,
    Approved,
    Booted,
    CancelAsked,
    Checked,
    Clear,
    Confirmed,
    Damaged,
    Died,
    Downloaded,
    Event,
    Failed,
    Held,
    InstallAsked,
    JobGone,
    JobSeen,
    JobTaken,
    Judged,
    Loaded,
    OutcomeTaken,
    PinAsked,
    Retry,
    Reverted,
    RollbackAsked,
    Shadowed,
    Staged,
    Stood,
    TimerFired,
    Troubled,
    Unreachable,
)
from edgepack_agent.core.phases import NEEDS, Step, enter, fail, fresh, proven, telling
from edgepack_agent.core.state import Job, Outcome, Phase, Slot, State

__all__ = [
    "MAX_BOOTS",
    "MAX_DEATHS",
    "MAX_REPAIRS",
    "PHASES",
    "TABLE",
    "transition",
]

PHASES: tuple[Phase, ...] = get_args(Phase)
MAX_BOOTS = 3
"""Restarts that a candidate may see before it is held to be their cause."""
MAX_DEATHS = 1
"""Ends of its runner that a candidate may see: one can be the box's fault."""
MAX_REPAIRS = 2
Rule = Callable[[State, Any], Step]


def transition(state: State, event: Event) -> Step:
    """Return the state after EVENT, and what is to be done once it is persisted."""
    if isinstance(event, TimerFired) and event.phase != state.phase:
        return state, ()
    rule = TABLE.get((state.phase, type(event)))
    if rule is None:
        return state, (Log(f"{type(event).__name__} means nothing in {state.phase}"),)
    return rule(state, event)


# -- the rules, in the order of the story


def _offer(state: State, event: JobSeen) -> Step:
    if state.outcome and state.outcome.job == event.job.id:
        return state, NEEDS["idle"](state)
    if event.job.id == state.ended:
        return state, (Log(f"job {event.job.id} has ended here"),)
    if state.current and state.current.model.path == event.job.target:
        return _already_there(state, event.job)
    if state.pinned:
        return _stays(fresh(state), event.job)
    return enter("offered", fresh(state), job=event.job, outcome=None)


def _already_there(state: State, job: Job) -> Step:
    done = Outcome(job.id, "SUCCEEDED", "already_active")
    return enter("idle", fresh(state), outcome=done, ended=job.id)


def _stays(state: State, job: Job) -> Step:
    """Refuse JOB: this device is pinned to the model it has."""
    no = Outcome(job.id, "REJECTED", "pinned", {"message": state.pinned})
    return enter("idle", state, outcome=no, ended=job.id)


def _decline(state: State, _event: CancelAsked) -> Step:
    """Refuse the job that is offered: a person at the device does not want it."""
    if state.job is None:
        return _not_taken(state, _event)
    no = Outcome(state.job.id, "FAILED", "cancelled_locally")
    return enter("idle", fresh(state), outcome=no, ended=state.job.id)


def _same_or_cancel(state: State, event: JobSeen) -> Step:
    if state.job is None or state.job.local or state.job.id == event.job.id:
        return state, ()
    return _cancel(state, "replaced")


def _offer_again(state: State, event: JobSeen) -> Step:
    return enter("offered", state, job=event.job)


def _taken(state: State, event: JobTaken) -> Step:
    mine = state.job is not None and state.job.id == event.job
    return state, (Consider(),) if mine else ()


def _cleared(state: State, _event: Clear) -> Step:
    return enter("checking", state, hold=None)


def _held(state: State, event: Held) -> Step:
    """Wait; what is under way is stopped, what it has fetched is kept."""
    if state.job is None or state.job.local:
        return fail(state, "FAILED", event.hold.reason, {"message": event.hold.text})
    return enter("deferred", state, Halt(), candidate=None, hold=event.hold)


def _held_on(state: State, event: Held) -> Step:
    after = replace(state, hold=event.hold)
    said = telling(after) if after != state else ()
    return after, (*said, Recheck(event.hold))


def _look_again(state: State, _event: Event) -> Step:
    return state, (Consider(),)


def _pin(state: State, event: PinAsked) -> Step:
    return replace(state, pinned=event.why), ()


def _pin_offered(state: State, event: PinAsked) -> Step:
    pinned = replace(state, pinned=event.why)
    return _stays(fresh(pinned), state.job) if event.why and state.job else (pinned, ())


def _pin_under_way(state: State, event: PinAsked) -> Step:
    pinned = replace(state, pinned=event.why)
    if not event.why or state.job is None or state.job.local:
        return pinned, ()
    return fail(pinned, "REJECTED", "pinned", {"message": event.why})


def _stood(state: State, event: Stood) -> Step:
    """Tell of a revocation once; if it says so, stop at once and go back to what is allowed."""
    slot = state.current
    if slot is None or slot.model.digest != event.digest or not event.revoked:
        return state, ()
    policy = {"policy": "stop" if event.stop else "keep"}
    told = Publish("revoked", slot.model.release, event.digest, "revoked", policy)
    if not event.stop:
        known = state.revoked == event.digest
        return replace(state, revoked=event.digest), () if known else (told,)
    back = state.previous if event.back else None
    alone = replace(fresh(state), current=None, previous=None, revoked=event.digest, pinned="")
    if back is None:
        return enter("idle", alone, told, Retire(slot))
    job = Job(f"revoked-{slot.name}", back.model.release, back.model.path, 0.0, local=True)
    return enter("staged", alone, told, Retire(slot), job=job, candidate=back)


def _troubled(state: State, event: Troubled) -> Step:
    if state.tries >= MAX_TRIES:
        return fail(state, "FAILED", event.reason, event.detail)
    return replace(state, tries=state.tries + 1), (TryLater(),)


def _not_taken(state: State, _event: Event) -> Step:
    return enter("idle", fresh(state))


def _gone(state: State, event: JobGone) -> Step:
    if state.job is None or state.job.local or event.job not in {"", state.job.id}:
        return state, ()
    return _cancel(state, "cancelled")


def _cancel_asked(state: State, _event: CancelAsked) -> Step:
    return fail(state, "FAILED", "cancelled_locally")


def _cancel(state: State, reason: str) -> Step:
    return fail(state, "CANCELED", reason)


def _install(state: State, event: InstallAsked) -> Step:
    slot = _free_slot(state, event)
    return enter("downloading", fresh(state), job=event.job, candidate=slot)


def _approved(state: State, event: Approved) -> Step:
    return enter("downloading", state, candidate=_free_slot(state, event))


def _free_slot(state: State, event: Approved | InstallAsked) -> Slot:
    return Slot("b" if state.current and state.current.name == "a" else "a", event.model)


def _go_back(state: State, event: RollbackAsked) -> Step:
    if state.previous is None:
        return state, (Log("there is no previous model to go back to"),)
    return enter("staged", fresh(state), job=event.job, candidate=state.previous)


def _downloaded(state: State, _event: Downloaded) -> Step:
    # The slot is about to be overwritten: what was in it is no longer there to go back to.
    taken = state.candidate.name if state.candidate else None
    kept = state.previous if state.previous and state.previous.name != taken else None
    return enter("verifying", state, previous=kept)


def _damaged(state: State, _event: Damaged) -> Step:
    if state.repairs >= MAX_REPAIRS:
        return fail(state, "FAILED", "digest_mismatch")
    return enter("downloading", state, repairs=state.repairs + 1)


def _damaged_list(state: State, _event: Damaged) -> Step:
    """Ask again: there is no candidate yet to download anew."""
    return _troubled(state, Troubled("damaged_blob"))


def _staged(state: State, _event: Staged) -> Step:
    return enter("staged", state)


def _loaded(state: State, _event: Loaded) -> Step:
    return enter("self_test", state)


def _checked(state: State, event: Checked) -> Step:
    if event.score is not None:
        state = replace(state, exam={"score": event.score, "min_score": event.min_score})
    if not event.golden:
        return fail(state, "REJECTED", "golden_mismatch", event.detail)
    exam = state.candidate.model.exam if state.candidate else None
    if exam and (event.score is None or event.score < exam.min_score):
        return fail(state, "REJECTED", "acceptance_below_limit", event.detail)
    # A verdict holds: what came after it and went wrong says nothing against it.
    if state.job and state.job.shadow and not state.shadow:
        return enter("shadow", state)
    return enter("switching", state, exposed=True)


def _shadowed(state: State, event: Shadowed) -> Step:
    seen = replace(state, shadow=event.seen)
    if not event.good:
        return fail(seen, "FAILED", event.reason)
    return enter("switching", seen, exposed=True)


def _accepting(state: State, _event: Accepting) -> Step:
    return enter("probation", state)


def _judged(state: State, event: Judged) -> Step:
    if not event.good:
        return fail(state, "FAILED", event.reason, event.detail)
    back = state.current if state.current != state.candidate else state.previous
    return enter("committed", state, current=state.candidate, previous=back)


def _confirmed(state: State, _event: Confirmed) -> Step:
    done = Outcome(state.job.id, "SUCCEEDED", "", proven(state)) if state.job else None
    return _finish(state, done)


def _reverted(state: State, _event: Reverted) -> Step:
    return _finish(state, state.result)


def _finish(state: State, done: Outcome | None) -> Step:
    local = state.job is None or state.job.local
    told = None if local or done is None or done.status == "CANCELED" else done
    ended = state.ended if local or state.job is None else state.job.id
    return enter("idle", fresh(state), outcome=told or state.outcome, ended=ended)


def _failed(state: State, event: Failed) -> Step:
    return fail(state, event.status, event.reason, event.detail)


def _troubled_late(state: State, event: Troubled) -> Step:
    return fail(state, "FAILED", event.reason, event.detail)


def _too_late(state: State, event: TimerFired) -> Step:
    if event.total and state.phase != "deferred":
        return fail(state, "FAILED", "job_timeout")
    return fail(state, *TOO_LATE[state.phase], _waited_for(state))


def _waited_for(state: State) -> dict[str, Any]:
    return {"message": f"waited for: {state.hold.reason}"} if state.hold else {}


def _pause(state: State, _event: Unreachable) -> Step:
    return state, (TryLater(),)


def _again(state: State, _event: Event) -> Step:
    return state, NEEDS[state.phase](state)


def _resume_loaded(state: State, _event: Booted) -> Step:
    """Begin again with loading: what a runner knew is gone, what is on disk is not."""
    if state.boots >= MAX_BOOTS:
        return fail(state, "FAILED", "restart_loop")
    return enter("staged", state, boots=state.boots + 1)


def _died(state: State, event: Died) -> Step:
    """Load it once more: one death may be the box's fault, a second one is the model's."""
    if state.deaths >= MAX_DEATHS:
        return fail(state, "FAILED", "runner_exited", event.detail)
    return enter("staged", state, deaths=state.deaths + 1)


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
    ("idle",         Stood,         _stood),

    ("offered",      Booted,        _not_taken),
    ("offered",      JobSeen,       _offer_again),
    ("offered",      JobTaken,      _taken),
    ("offered",      Clear,         _cleared),
    ("offered",      Held,          _held),
    ("offered",      Failed,        _failed),
    ("offered",      JobGone,       _not_taken),
    ("offered",      TimerFired,    _not_taken),
    ("offered",      PinAsked,      _pin_offered),
    ("offered",      CancelAsked,   _decline),

    ("deferred",     Booted,        _look_again),
    ("deferred",     Clear,         _cleared),
    ("deferred",     Held,          _held_on),
    ("deferred",     Retry,         _look_again),

    ("checking",     Booted,        _again),
    ("checking",     Approved,      _approved),
    ("checking",     Unreachable,   _pause),
    ("checking",     Troubled,      _troubled),
    ("checking",     Damaged,       _damaged_list),
    ("checking",     Held,          _held),
    ("checking",     Retry,         _again),

    ("downloading",  Booted,        _again),
    ("downloading",  Downloaded,    _downloaded),
    ("downloading",  Damaged,       _damaged),
    ("downloading",  Unreachable,   _pause),
    ("downloading",  Troubled,      _troubled),
    ("downloading",  Held,          _held),
    ("downloading",  Retry,         _again),

    ("verifying",    Booted,        _again),
    ("verifying",    Staged,        _staged),
    ("verifying",    Damaged,       _damaged),
    ("verifying",    Troubled,      _troubled),
    ("verifying",    Held,          _held),
    ("verifying",    Retry,         _again),

    ("staged",       Booted,        _resume_loaded),
    ("staged",       Loaded,        _loaded),
    ("staged",       Died,          _died),

    ("self_test",    Booted,        _resume_loaded),
    ("self_test",    Checked,       _checked),
    ("self_test",    Died,          _died),

    ("shadow",       Booted,        _resume_loaded),
    ("shadow",       Shadowed,      _shadowed),
    ("shadow",       Died,          _died),

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
    ("rolling_back", Troubled,      _nothing),
    ("rolling_back", TimerFired,    _again),
)  # fmt: skip

_UNDER_WAY: tuple[Phase, ...] = (
    "deferred", "checking", "downloading", "verifying", "staged", "self_test", "shadow",
    "switching", "probation",
)  # fmt: skip
"""Phases in which a candidate can be given up, all in the same way."""
_GIVING_UP: tuple[tuple[type[Any], Rule], ...] = (
    (Failed,      _failed),
    (JobSeen,     _same_or_cancel),
    (JobGone,     _gone),
    (CancelAsked, _cancel_asked),
    (TimerFired,  _too_late),
    (JobTaken,    _nothing),
    (PinAsked,    _pin_under_way),
    (Troubled,    _troubled_late),
)  # fmt: skip
_ANYWHERE: tuple[tuple[type[Any], Rule], ...] = (
    (OutcomeTaken, _told),
    (PinAsked,     _pin),
    (Clear,        _nothing),
    (Held,         _nothing),
    (Stood,        _nothing),
)  # fmt: skip

TABLE: dict[tuple[Phase, type[Any]], Rule] = (
    {(phase, event): rule for phase in PHASES for event, rule in _ANYWHERE}
    | {(phase, event): rule for phase in _UNDER_WAY for event, rule in _GIVING_UP}
    | {(phase, event): rule for phase, event, rule in _STORY}
)
