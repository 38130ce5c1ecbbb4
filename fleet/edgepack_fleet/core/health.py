"""How a release does, from what was added up of it. Pure.

A latency is told with the edges of the bin it lies in: the counts say no more than that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgepack.counting import FAULTS, faults
from edgepack_fleet.core.histograms import Quantile, counted, like, quantile
from edgepack_fleet.core.slots import SPANS, Slot
from edgepack_fleet.core.sums import Sums, added

__all__ = ["Agreement", "Health", "Latency", "Point", "agreement", "health", "series", "step_for"]

POINTS = 300
"""Points of a series at most."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Of runtime calls, milliseconds."""

    p50: Quantile | None
    p95: Quantile | None
    p99: Quantile | None
    counted: int
    """Calls they are told from."""
    left_out: int
    """Calls that were counted between other edges."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the release with the one before it, where both answered the same inputs."""

    mean: float
    worst: float
    devices: int


@dataclass(frozen=True, slots=True)
class Point:
    """One stretch of a series."""

    start: float
    """Unix seconds."""
    seconds: int
    inferences: int
    errors: int
    p50: float | None
    p95: float | None
    rss_mb: float
    throttled_s: int


@dataclass(frozen=True, slots=True)
class Health:
    """What a release did in a stretch of time."""

    inferences: int
    errors: int
    error_rate: float | None
    """Errors of all that was asked; None: nothing was."""
    reasons: Mapping[str, int]
    """Errors by reason, the most frequent first."""
    others: Mapping[str, int]
    """What clients, cameras or a full queue did wrong, by reason: held against no release."""
    latency: Latency
    classes: Mapping[str, int]
    confidence: Mapping[str, Any] | None
    rss_mb: float | None
    """Highest of any device; None: not reported."""
    temperature_c: float | None
    throttled_s: int
    lost: int
    """Rows of telemetry that devices had to throw away."""
    points: Sequence[Point] = field(default_factory=tuple)


def health(found: Sequence[tuple[Slot, Sums]], step: int) -> Health:
    """Return what was FOUND, one entry a slot and variant, with a series of STEP seconds."""
    whole = Sums()
    for _, sums in found:
        whole = added(whole, sums)
    histogram, left_out = like(sums.latency for _, sums in found)
    # By reason: an older version added up what is nobody's fault, too.
    errors = faults(whole.reasons)
    asked = whole.inferences + errors
    return Health(
        inferences=whole.inferences,
        errors=errors,
        error_rate=errors / asked if asked else None,
        reasons=_frequent({r: count for r, count in whole.reasons.items() if r in FAULTS}),
        others=_frequent({r: count for r, count in whole.reasons.items() if r not in FAULTS}),
        latency=Latency(
            quantile(histogram, 0.5),
            quantile(histogram, 0.95),
            quantile(histogram, 0.99),
            counted(histogram),
            left_out,
        ),
        classes=_frequent(whole.classes),
        confidence=like(sums.confidence for _, sums in found)[0],
        rss_mb=whole.rss_mb or None,
        temperature_c=whole.temperature_c,
        throttled_s=whole.throttled_s,
        lost=whole.lost,
        points=tuple(series(found, step)),
    )


def series(found: Iterable[tuple[Slot, Sums]], step: int) -> Iterable[Point]:
    """Yield points of STEP seconds or, where nothing finer is known, of more."""
    points: dict[Slot, list[Sums]] = {}
    for slot, sums in found:
        span = max(step, slot.span)
        points.setdefault(Slot(span, slot.start // span * span), []).append(sums)
    for slot in sorted(points, key=lambda slot: (slot.start, slot.span)):
        yield _point(slot, points[slot])


def step_for(seconds: float) -> int:
    """Return the finest step in which SECONDS are not too many points."""
    return next((span for span in SPANS if seconds / span <= POINTS), SPANS[-1])


def agreement(shares: Sequence[float]) -> Agreement | None:
    """Return what devices said of it, one of the SHARES each; None: none did."""
    if not shares:
        return None
    return Agreement(sum(shares) / len(shares), min(shares), len(shares))


def _point(slot: Slot, found: Sequence[Sums]) -> Point:
    histogram, _ = like(sums.latency for sums in found)
    middle, tail = quantile(histogram, 0.5), quantile(histogram, 0.95)
    return Point(
        start=slot.start,
        seconds=slot.span,
        inferences=sum(sums.inferences for sums in found),
        errors=sum(faults(sums.reasons) for sums in found),
        p50=middle.value if middle else None,
        p95=tail.value if tail else None,
        rss_mb=max(sums.rss_mb for sums in found),
        throttled_s=sum(sums.throttled_s for sums in found),
    )


def _frequent(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
