"""What a rollout does next: `decide` is pure, so that it can be replayed and shown.

A wave counts devices that were *reached*: an offline device that never took its job up is in
neither numerator nor denominator, and gets the release when it returns, in whatever wave runs
then. Waves are cumulative and are sized from the group as it is now.

Saves and sends nothing: the service carries the actions out.
"""

from collections.abc import Sequence
from dataclasses import replace

from edgepack_fleet.core import members as of
from edgepack_fleet.core.actions import (
    Action,
    Assign,
    Cancel,
    Complete,
    Decision,
    Pause,
    Revert,
    Reverted,
    TimeOut,
    Withdraw,
)
from edgepack_fleet.core.gates import Reading, judge_wave
from edgepack_fleet.core.model import (
    FAILURES,
    LIVE,
    SERVING,
    TERMINAL,
    TURNING_BACK,
    UNSTARTED,
    Member,
    Rollout,
)
from edgepack_fleet.core.reverting import turn_back
from edgepack_fleet.core.sentences import reasons, turning_back, why
from edgepack_fleet.core.waves import wave_sizes

__all__ = ["breaches", "current_wave", "decide"]

STOPS: dict[str, tuple[str, type[Pause | Cancel | Revert]]] = {
    "pause": ("Paused", Pause),
    "cancel": ("Cancelled", Cancel),
    "revert": ("Reverting", Revert),
}


def decide(rollout: Rollout, members: Sequence[Member], now: float) -> Decision:
    """Return what ROLLOUT does next for MEMBERS, its group, at NOW (Unix seconds).

    Silence is judged in every live state; nothing else happens unless the rollout serves or turns
    back.
    """
    if rollout.state in UNSTARTED or rollout.state not in LIVE:
        return Decision((), rollout.standing)
    late, members = _without_silent(rollout, members, now)
    if rollout.state in TURNING_BACK:
        return _back(rollout, members, now, late)
    if rollout.state not in SERVING:
        return Decision(late, rollout.standing)
    counting = of.eligible(members, rollout, now)
    if said := _halt(rollout, counting, now):
        word, stop = STOPS[rollout.policy.on_breach]
        reason = f"{word}: {said}."
        return Decision((*late, stop(reason)), reason)
    return _proceed(rollout, members, now, late)


def _back(
    rollout: Rollout, members: Sequence[Member], now: float, late: tuple[Action, ...]
) -> Decision:
    actions, over = turn_back(rollout, members, now)
    reason = turning_back(rollout, members, over=over or rollout.state == "reverted")
    end = (Reverted(reason),) if over and rollout.state == "reverting" else ()
    return Decision((*late, *actions, *end), reason)


def breaches(rollout: Rollout, members: Sequence[Member], now: float) -> tuple[Reading, ...]:
    """Return the gates of ROLLOUT that do not hold at NOW, of every wave that has finished."""
    counting = of.eligible(members, rollout, now)
    return tuple(
        reading
        for wave in range(len(rollout.waves))
        for reading in judge_wave(rollout, counting, wave, now)
        if reading.verdict == "breached"
    )


def current_wave(rollout: Rollout, counting: Sequence[Member], now: float) -> int:
    """Return the index of the wave that ROLLOUT is in; COUNTING are the members that count."""
    return _current_wave(rollout, counting, wave_sizes(rollout.waves, len(counting)), now)


def _without_silent(
    rollout: Rollout, members: Sequence[Member], now: float
) -> tuple[tuple[Action, ...], list[Member]]:
    """Return the ends of jobs that are overdue, and MEMBERS after them."""
    late: list[Action] = []
    after = []
    for member in members:
        if reason := of.overdue(member, rollout.policy, now):
            late.append(TimeOut(member.device.id, reason))
            after.append(of.timed_out(member, reason))
        else:
            after.append(member)
    return tuple(late), after


def _halt(rollout: Rollout, counting: Sequence[Member], now: float) -> str:
    """Return why the rollout must stop; empty if it need not. COUNTING are those that count."""
    if said := _too_many_failures(rollout, counting):
        return said
    if said := _hopeless_wave(rollout, counting):
        return said
    bad = breaches(rollout, counting, now)
    return f"in wave {bad[0].wave + 1} {bad[0].said}" if bad else ""


def _too_many_failures(rollout: Rollout, counting: Sequence[Member]) -> str:
    policy = rollout.policy
    heard = [m for m in counting if m.device.id not in rollout.forgiven and of.reached(m)]
    finished = [m for m in heard if of.finished(m, policy) and m.status != "CANCELED"]
    failed = [m for m in finished if of.failed(m, policy)]
    if not failed:
        return ""
    said = f"{len(failed)} of {len(finished)} finished devices failed ({reasons(failed)})"
    if len(failed) >= policy.max_failures:
        return f"{said}; the limit is {policy.max_failures}"
    share = 100 * len(failed) / len(finished)
    if len(finished) >= policy.min_sample and share > policy.max_failure_percent:
        return f"{said}, {share:.0f}%; the limit is {policy.max_failure_percent:g}%"
    return ""


def _hopeless_wave(rollout: Rollout, counting: Sequence[Member]) -> str:
    for index in range(len(rollout.waves)):
        inside = of.counted(rollout, counting, index)
        if inside and all(of.failed(m, rollout.policy) for m in inside):
            return f"no device of wave {index + 1} succeeded ({reasons(inside)})"
    return ""


def _proceed(
    rollout: Rollout, members: Sequence[Member], now: float, late: tuple[Action, ...]
) -> Decision:
    policy = rollout.policy
    withdrawn = tuple(Withdraw(m.device.id) for m in members if of.gone(m, policy, now))
    away = {action.device for action in withdrawn}
    members = [replace(m, wave=None) if m.device.id in away else m for m in members]
    counting = of.eligible(members, rollout, now)
    sizes = wave_sizes(rollout.waves, len(counting))
    current = _current_wave(rollout, counting, sizes, now)
    again = _again(rollout, counting, now)
    occupied = sum(m.wave is not None for m in counting)
    new = _new(rollout, counting, max(0, sizes[current] - occupied), current, now)
    room = of.room(members, policy, now)
    given = (*again, *new)[:room]
    waits = _waits(rollout, counting, sizes, current, now)
    reason = why(rollout, members, current, waits, now)
    if not given and _at_the_end(rollout, counting, current, sizes, now):
        return Decision((*late, *withdrawn, Complete(reason)), reason)
    return Decision((*late, *withdrawn, *given), reason)


def _waits(
    rollout: Rollout, counting: Sequence[Member], sizes: Sequence[int], current: int, now: float
) -> str:
    """Return what a wave waits for that is full and finished; empty: for its devices only."""
    readings = judge_wave(rollout, counting, current, now)
    if said := "; ".join(r.said for r in readings if r.verdict != "holds"):
        return said
    end = of.ended(rollout, of.counted(rollout, counting, current))
    full = sum(m.wave is not None for m in counting) >= sizes[current]
    soaking = full and end is not None and now < end + rollout.policy.soak_s
    return "soaks" if soaking and current < len(sizes) - 1 else ""


def _again(rollout: Rollout, counting: Sequence[Member], now: float) -> list[Assign]:
    """Return the next jobs of those that failed for a reason that may pass."""
    policy = rollout.policy
    return [
        Assign(m.device.id, m.target, m.wave, m.attempt + 1)
        for m in sorted(counting, key=lambda m: m.device.id)
        if m.target is not None
        and m.wave is not None
        and m.device.id not in rollout.forgiven
        and of.retries(m, policy)
        and of.due(m, policy, now)
        and of.free(m, policy, now)
    ]


def _new(
    rollout: Rollout, counting: Sequence[Member], places: int, wave: int, now: float
) -> list[Assign]:
    """Return the first jobs of those that get one of PLACES in WAVE."""
    waiting = sorted((m for m in counting if m.wave is None), key=lambda m: m.device.id)
    chosen = [m for m in waiting if of.free(m, rollout.policy, now)][:places]
    return [Assign(m.device.id, m.target, wave) for m in chosen if m.target is not None]


def _current_wave(
    rollout: Rollout, counting: Sequence[Member], sizes: Sequence[int], now: float
) -> int:
    """Return the index of the first wave that is not done; the last one if all are."""
    occupied = sum(m.wave is not None for m in counting)
    for index, size in enumerate(sizes[:-1]):
        if occupied < size or not _wave_done(rollout, counting, index, now):
            return index
    return len(sizes) - 1


def _wave_done(rollout: Rollout, counting: Sequence[Member], wave: int, now: float) -> bool:
    """Return whether a wave that is full has finished, soaked, and passed its gates."""
    held = [m for m in counting if m.wave == wave and m.device.id not in rollout.forgiven]
    if not held:
        return True
    end = of.ended(rollout, of.counted(rollout, counting, wave))
    if end is None or now < end + rollout.policy.soak_s:
        return False
    return all(r.verdict == "holds" for r in judge_wave(rollout, counting, wave, now))


def _at_the_end(
    rollout: Rollout, counting: Sequence[Member], current: int, sizes: Sequence[int], now: float
) -> bool:
    if rollout.state != "running" or current < len(sizes) - 1:
        return False
    held = [m for m in counting if m.wave is not None]
    over = all(m.status in TERMINAL and not _tried_again(m, rollout) for m in held)
    gates = judge_wave(rollout, counting, current, now)
    return bool(held) and over and all(r.verdict == "holds" for r in gates)


def _tried_again(member: Member, rollout: Rollout) -> bool:
    forgiven = member.device.id in rollout.forgiven
    return member.status in FAILURES and of.retries(member, rollout.policy) and not forgiven
