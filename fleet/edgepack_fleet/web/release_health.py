"""Two releases side by side in the field, for people: what differs, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from sqlalchemy.orm import Session

from edgepack_fleet import insights
from edgepack_fleet.core.comparison import Interval
from edgepack_fleet.core.histograms import like
from edgepack_fleet.core.plainly import agreement_said, errors_said, latency_said
from edgepack_fleet.insights import Compared, ReleaseHealth
from edgepack_fleet.windows import Window, entries

__all__ = ["Difference", "Field", "Pair", "beside", "field"]

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One comparison: a sentence, and where B is relative to A."""

    name: str
    said: str
    tone: Tone
    """`plain`: no difference is seen, or not enough is known."""
    interval: Interval | None
    """Relative to A: 0 is no difference; 0.1 is a tenth more."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two histograms with the same edges, as shares of each."""

    names: tuple[str, ...]
    """Of the bins."""
    before: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def top(self) -> float:
        """The largest share; never 0."""
        return max(*self.before, *self.now, 1e-9)


@dataclass(frozen=True, slots=True)
class Field:
    """Releases A and B in one stretch of time."""

    sides: tuple[ReleaseHealth, ReleaseHealth]
    compared: Compared
    differences: tuple[Difference, ...]
    latency: Pair | None


def field(session: Session, a: Window, b: Window) -> Field:
    """Return how the releases of A and B do."""
    found = insights.compare(session, a, b)
    sides = insights.health_of(session, a, None), insights.health_of(session, b, None)
    return Field(sides, found, _differences(found), _latency(session, a, b))


def beside(names: Sequence[str], before: Sequence[float], now: Sequence[float]) -> Pair:
    """Return two histograms as shares, so that unequal numbers can be laid over each other."""
    return Pair(tuple(names), _shares(before), _shares(now))


def _shares(counts: Sequence[float]) -> tuple[float, ...]:
    whole = sum(counts) or 1
    return tuple(count / whole for count in counts)


def _differences(found: Compared) -> tuple[Difference, ...]:
    return (
        Difference("Errors", errors_said(found.errors), _tone(found.errors, 0.0), None),
        _ratio("Latency, 50 %", latency_said("p50", found.p50), found.p50),
        _ratio("Latency, 95 %", latency_said("p95", found.p95), found.p95),
        Difference("Agreement", agreement_said(found.agreement), "plain", None),
    )


def _ratio(name: str, said: str, found: Interval | None) -> Difference:
    moved = Interval(found.value - 1, found.low - 1, found.high - 1) if found else None
    return Difference(name, said, _tone(found, 1.0), moved)


def _tone(found: Interval | None, same: float) -> Tone:
    if found is None or found.low <= same <= found.high:
        return "plain"
    return "bad" if found.low > same else "good"


def _latency(session: Session, a: Window, b: Window) -> Pair | None:
    one, other = (like(e.sums.latency for e in entries(session, w))[0] for w in (a, b))
    if not one or not other or not one["edges"] or list(one["edges"]) != list(other["edges"]):
        return None
    return beside(_bins(one), one["counts"], other["counts"])


def _bins(histogram: Mapping[str, Any]) -> list[str]:
    """Return the bins in words, in milliseconds."""
    edges = [f"{edge:g}" for edge in histogram["edges"]]
    inner = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"below {edges[0]}", *inner, f"{edges[-1]} and more"]
