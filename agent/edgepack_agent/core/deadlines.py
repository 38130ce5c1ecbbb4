"""How long each phase may last, what it is called when it did, and how long to pause. Pure."""

from edgepack_agent.core.state import Phase, State, Status

__all__ = ["MAX_TRIES", "TOO_LATE", "backoff", "deadline", "restart_pause"]

MAX_TRIES = 4
"""Times a job's steps are repeated for trouble that may pass."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
GRACE_S = 60.0
"""For a verdict that is due."""
STEADY_SHARE, STEADY_S = 10.0, 60.0
"""How long a runner must have lived, in pauses and in seconds, for its end to be no crash loop."""
_SECONDS: dict[Phase, float] = {
    "offered": 60.0,
    "verifying": 900.0,
    "staged": 180.0,
    "self_test": 300.0,
    "switching": 30.0,
    "committed": 30.0,
    "rolling_back": 30.0,
}
TOO_LATE: dict[Phase, tuple[Status, str]] = {
    "deferred": ("FAILED", "deferred_too_long"),
    "checking": ("FAILED", "unreachable"),
    "downloading": ("FAILED", "unreachable"),
    "verifying": ("FAILED", "staging_timeout"),
    "staged": ("REJECTED", "load_timeout"),
    "self_test": ("REJECTED", "self_test_timeout"),
    "shadow": ("FAILED", "no_verdict"),
    "switching": ("FAILED", "switch_timeout"),
    "probation": ("FAILED", "no_verdict"),
}
"""How a job ends whose phase has lasted too long."""


def deadline(state: State) -> float | None:
    """Return the seconds that STATE's phase may last; None: for ever, which only idle may.

    Checking and downloading may last longer while they come on; see `age.left` for the whole job.
    """
    job = state.job
    if state.phase in {"checking", "downloading"}:
        return job.timeout_s if job else 0.0
    if state.phase == "deferred":
        return max(job.max_defer_s - state.deferred_s, 0.0) if job else 0.0
    if state.phase == "shadow":
        return _compares_s(state) + GRACE_S
    if state.phase == "probation":
        return (job.probation_s if job else 0.0) + GRACE_S
    return _SECONDS.get(state.phase)


def _compares_s(state: State) -> float:
    shadow = state.job.shadow if state.job else None
    return max(shadow.seconds, shadow.deadline_s) if shadow else 0.0


def backoff(tries: int, luck: float) -> float:
    """Return the seconds to pause before the next try, after TRIES that came to nothing.

    Args:
        tries: From 0.
        luck: In 0..1, drawn anew each time: what happened to all devices at once must not make
            them all come back at once.
    """
    longest = min(FIRST_PAUSE_S * 2.0 ** min(tries, 16), LONGEST_PAUSE_S)
    return max(longest * luck, FIRST_PAUSE_S / 5)


def restart_pause(paused_s: float, lived_s: float) -> float:
    """Return the seconds to pause before a runner that ended is started again.

    A crash loop is given longer and longer pauses. A runner that lived for ten of its pauses is
    none: down time stays below a tenth, however often it is killed.

    Args:
        paused_s: The pause before its last start; 0: there was none.
        lived_s: From that start to its end.
    """
    if lived_s >= min(STEADY_SHARE * paused_s, STEADY_S):
        return FIRST_PAUSE_S
    return min(2 * paused_s, LONGEST_PAUSE_S)
