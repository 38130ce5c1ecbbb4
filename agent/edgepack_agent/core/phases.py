"""Entering a phase: the new state, and everything that the phase needs done. Decides no way.

Resuming a phase is entering it again, so what stands here is also what a power cut costs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from edgepack_agent.core.effects import (
    Approve,
    Check,
    Confirm,
    Consider,
    Download,
    Drain,
    Effect,
    Load,
    Mirror,
    Publish,
    Recheck,
    Revert,
    Stage,
    Switch,
    Tell,
)
from edgepack_agent.core.state import Outcome, Phase, Slot, State, Status

__all__ = ["MAX_STEPS", "NEEDS", "Step", "enter", "fail", "fresh", "proven", "telling"]

Step = tuple[State, tuple[Effect, ...]]
MAX_STEPS = 28
"""Phases that a job may enter with a candidate; one that goes well enters six."""
_COUNTED = frozenset({"verifying", "staged", "self_test", "shadow", "switching", "probation"})


def enter(phase: Phase, state: State, *effects: Effect, **changes: Any) -> Step:
    """Return STATE with CHANGES in PHASE, and EFFECTS with all that the phase needs."""
    entered: State = replace(state, phase=phase, **changes)
    if phase in _COUNTED:
        entered = replace(entered, steps=state.steps + 1)
        if entered.steps > MAX_STEPS:
            return fail(state, "FAILED", "restart_loop")
    return entered, (*telling(entered), *effects, *NEEDS[phase](entered))


def telling(state: State) -> tuple[Tell, ...]:
    """Return what to tell the fleet of STATE; what it must not miss is an `Outcome` instead."""
    if state.job is None or state.job.local or state.phase in {"idle", "committed", "rolling_back"}:
        return ()
    hold = state.hold if state.phase == "deferred" else None
    if hold is None:
        return (Tell(Outcome(state.job.id, "IN_PROGRESS", "", proven(state)), state.phase),)
    detail = {"until": hold.until, "message": hold.text}
    return (Tell(Outcome(state.job.id, "IN_PROGRESS", hold.reason, detail), state.phase),)


def proven(state: State) -> dict[str, Any]:
    """Return what the fleet is told of the exam and of the comparison of both models."""
    facts = {"exam": state.exam, "shadow": state.shadow}
    return {name: fact for name, fact in facts.items() if fact}


def _needs_patience(state: State) -> tuple[Effect, ...]:
    return (Recheck(state.hold),) if state.hold else (Consider(),)


def _needs_approval(state: State) -> tuple[Effect, ...]:
    return (Approve(state.job),) if state.job else ()


def _needs_comparing(state: State) -> tuple[Effect, ...]:
    return (Mirror(state.job.shadow),) if state.job and state.job.shadow else ()


def _needs_watching(state: State) -> tuple[Effect, ...]:
    job = state.job
    return (Drain(job.probation_s, job.max_p95_ratio) if job else Drain(0.0),)


def _needs_commit(state: State) -> tuple[Effect, ...]:
    slot = state.current
    if slot is None:
        return ()
    detail = {"override": True} if state.job and state.job.local else {}
    event = Publish("activated", slot.model.release, slot.model.digest, "", detail, _once(state))
    return (event, Confirm(slot))


def _needs_revert(state: State) -> tuple[Effect, ...]:
    kept = {slot.name for slot in (state.current, state.previous) if slot}
    discard = state.candidate if state.candidate and state.candidate.name not in kept else None
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
        _once(state),
    )
    return (event, Revert(discard))


def _once(state: State) -> str:
    """Return what the event of the end of STATE's job is told once about."""
    return state.job.id if state.job else ""


def _needs_telling(state: State) -> tuple[Effect, ...]:
    return (Tell(state.outcome, "idle"),) if state.outcome else ()


def _with_candidate(ask: Callable[[Slot], Effect]) -> Callable[[State], tuple[Effect, ...]]:
    return lambda state: (ask(state.candidate),) if state.candidate else ()


NEEDS: dict[Phase, Callable[[State], tuple[Effect, ...]]] = {
    "idle": _needs_telling,
    "offered": lambda _: (),
    "deferred": _needs_patience,
    "checking": _needs_approval,
    "downloading": _with_candidate(lambda slot: Download(slot.model)),
    "verifying": _with_candidate(Stage),
    "staged": _with_candidate(Load),
    "self_test": _with_candidate(lambda slot: Check(slot.model.exam)),
    "shadow": _needs_comparing,
    "switching": lambda _: (Switch(),),
    "probation": _needs_watching,
    "committed": _needs_commit,
    "rolling_back": _needs_revert,
}


def fresh(state: State) -> State:
    """Return STATE without a job and what belongs to one."""
    return State(
        current=state.current,
        previous=state.previous,
        outcome=state.outcome,
        ended=state.ended,
        pinned=state.pinned,
        revoked=state.revoked,
    )


def fail(state: State, status: Status, reason: str, detail: dict[str, Any] | None = None) -> Step:
    """Give STATE's job up: there is one way out, whatever went wrong."""
    job = state.job.id if state.job else ""
    told = proven(state) | (detail or {})
    return enter("rolling_back", state, result=Outcome(job, status, reason, told))
