"""How much time has passed, told by clocks of which none can be trusted alone. Reads no clock.

The wall clock jumps, and the clock since boot begins again at every boot. Within one boot the
latter is exact. Across boots it still says how long the new one has lasted, and the wall clock
may add something, though no more than `GAP_S`: a jump neither ends a job nor keeps it for ever.
"""

from dataclasses import replace

from edgepack_agent.core.state import Stamp, State

__all__ = ["GAP_S", "aged", "elapsed", "left"]

GAP_S = 6 * 3600.0
"""Seconds that the wall clock may add for the time a device was off."""
_WORKING = frozenset({"offered", "checking", "downloading", "verifying"})
"""Phases that the job's total time may end; a candidate that is judged is left to its judge."""


def elapsed(earlier: Stamp, later: Stamp) -> float:
    """Return the seconds from EARLIER to LATER, as far as they can be known; never negative."""
    if earlier.boot == later.boot:
        return max(0.0, later.up - earlier.up)
    off = later.wall - earlier.wall - later.up
    return later.up + min(max(0.0, off), GAP_S)


def aged(before: State, after: State, now: Stamp, *, booted: bool = False) -> State:
    """Return AFTER with the time since BEFORE counted to its job.

    A state that did not change is returned as it is, so that nothing needs to be written; but at
    every boot what the clocks say is kept.
    """
    if after.job is None:
        return after if after.stamp is None else replace(after, stamp=None)
    if after == before and not booted:
        return after
    if before.job is None or before.job.id != after.job.id or before.stamp is None:
        return replace(after, stamp=now, worked_s=0.0, deferred_s=0.0)
    worked, deferred = _spent(before, now)
    return replace(after, stamp=now, worked_s=worked, deferred_s=deferred)


def left(state: State, now: Stamp) -> float | None:
    """Return the seconds until STATE's job has taken too long in all; None: nothing ends it."""
    if state.job is None or state.stamp is None:
        return None
    worked, deferred = _spent(state, now)
    if state.phase == "deferred":
        return state.job.max_defer_s - deferred
    return state.job.total_s - worked if state.phase in _WORKING else None


def _spent(state: State, now: Stamp) -> tuple[float, float]:
    """Return the seconds that STATE's job has been worked at and deferred until NOW."""
    spent = elapsed(state.stamp, now) if state.stamp else 0.0
    if state.phase == "deferred":
        return state.worked_s, state.deferred_s + spent
    return state.worked_s + spent, state.deferred_s
