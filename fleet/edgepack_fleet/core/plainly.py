"""What a comparison of two releases says, in plain sentences. Pure."""

from edgepack_fleet.core.comparison import Interval

__all__ = ["agreement_said", "errors_said", "latency_said"]

UNKNOWN = "not enough is known"


def errors_said(found: Interval | None) -> str:
    """Return what is to be said of a difference of error rates."""
    if found is None:
        return f"errors: {UNKNOWN}"
    if found.low <= 0 <= found.high:
        return f"errors: no difference seen ({_points(found)})"
    word = "more" if found.low > 0 else "fewer"
    low, high = sorted((abs(found.low), abs(found.high)))
    return f"errors: B has {word}, by {100 * low:.2g}..{100 * high:.2g} percentage points"


def latency_said(name: str, found: Interval | None) -> str:
    """Return what is to be said of a ratio of latencies, NAME of which."""
    if found is None:
        return f"{name}: {UNKNOWN}"
    if found.low <= 1 <= found.high:
        return f"{name}: no difference seen ({_percent(found)})"
    word = "slower" if found.low > 1 else "faster"
    low, high = sorted((abs(found.low - 1), abs(found.high - 1)))
    return f"{name}: B is {word} by {100 * low:.2g}..{100 * high:.2g} %"


def agreement_said(found: Interval | None) -> str:
    """Return what is to be said of the agreement of both."""
    if found is None:
        return f"agreement: {UNKNOWN}; give a rollout --shadow SECONDS to measure it"
    low, high = 100 * found.low, 100 * found.high
    return f"agreement: B answers as A in {100 * found.value:.1f} % ({low:.1f}..{high:.1f} %)"


def _points(found: Interval) -> str:
    return f"{100 * found.low:+.2g}..{100 * found.high:+.2g} percentage points"


def _percent(found: Interval) -> str:
    return f"{100 * (found.low - 1):+.2g}..{100 * (found.high - 1):+.2g} %"
