"""What reports of telemetry come to when they are added up. Counts only add, so sums stay exact.

Of memory, processor and temperature the highest is kept. Knows no table and no clock.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgepack.counting import LATENCY_EDGES_MS, MAX_LABEL, OTHER, SCRAPED_EDGES_MS, faults
from edgepack.messages import Telemetry
from edgepack_fleet.core.expectation import Expected
from edgepack_fleet.core.histograms import between, checked, merged

__all__ = ["MAX_NAMES", "Sums", "added", "fitted", "of_report", "total"]

MAX_NAMES = 512
"""Labels, or reasons, that are counted apart; the rest is `OTHER`. A runner tells 256."""

MAX_FEATURES, MAX_BINS = 64, 64
REASON = re.compile(r"[a-z][a-z0-9_]{0,63}")
MAX_REASONS = 32
"""Reasons of errors in one report; a runner has fewer."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Reports, added up."""

    reports: int = 0
    inferences: int = 0
    errors: int = 0
    """Those that are held against the model, see `edgepack.counting.FAULTS`."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Whatever had no answer, by reason: more than `errors`."""
    latency: Mapping[str, Any] | None = None
    """Histogram, milliseconds."""
    confidence: Mapping[str, Any] | None = None
    """Histogram, 0 to 1."""
    classes: Mapping[str, int] = field(default_factory=dict)
    features: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Counts in the bins of the bundle's baseline, by feature such as `inputs.image.mean`."""
    rss_mb: float = 0.0
    cpu_percent: float = 0.0
    temperature_c: float | None = None
    throttled_s: int = 0
    lost: int = 0
    """Rows a device had to throw away."""


HIGHEST = frozenset({"rss_mb", "cpu_percent"})


def of_report(report: Telemetry) -> Sums:
    """Return what one REPORT says; a histogram that cannot be one is left out."""
    return Sums(
        reports=1,
        inferences=report.inferences,
        errors=faults(report.errors),
        reasons=_names({}, report.errors),
        latency=checked(_plain(report.latency_ms)),
        confidence=checked(_plain(report.confidence)),
        classes=_names({}, report.classes),
        features=_features({}, report.features),
        rss_mb=report.rss_mb,
        cpu_percent=report.cpu_percent,
        temperature_c=report.temperature_c,
        throttled_s=report.throttled_s or 0,
        lost=report.lost,
    )


def fitted(sums: Sums, expected: Expected) -> tuple[Sums, Sequence[str]]:
    """Return what of SUMS is EXPECTED, all totals as they are, and why the rest is not taken."""
    classes, odd_class = _named(sums.classes, expected.has_class)
    told = sorted(sums.reasons.items(), key=lambda item: -item[1])
    reasons, odd_reason = _named(dict(told[:MAX_REASONS]), _is_reason)
    if rest := sum(count for _, count in told[MAX_REASONS:]):
        reasons[OTHER], odd_reason = reasons.get(OTHER, 0) + rest, True
    features = {
        name: counts
        for name, counts in sums.features.items()
        if len(counts) <= expected.features.get(name, -1)
    }
    # Agents counted between the latter before.
    latency = between(sums.latency, LATENCY_EDGES_MS) or between(sums.latency, SCRAPED_EDGES_MS)
    confidence = between(sums.confidence, expected.confidence)
    why = {
        "unknown_class": odd_class,
        "unknown_error": odd_reason,
        "unknown_feature": len(features) < len(sums.features),
        "other_edges": (latency is None and sums.latency is not None)
        or (confidence is None and sums.confidence is not None),
    }
    taken = replace(
        sums,
        classes=classes,
        reasons=reasons,
        features=features,
        latency=latency,
        confidence=confidence,
    )
    return taken, [reason for reason, is_so in why.items() if is_so]


def _is_reason(name: str) -> bool:
    return REASON.fullmatch(name) is not None


def _named(found: Mapping[str, int], known: Callable[[str], bool]) -> tuple[dict[str, int], bool]:
    """Return what was FOUND, under `OTHER` what is not KNOWN, and whether there was any."""
    kept: dict[str, int] = {}
    odd = False
    for name, count in found.items():
        # Devices count what has a long name under another one themselves.
        fits = known(name) and len(name) <= MAX_LABEL
        odd = odd or not fits
        place = name if fits else OTHER
        kept[place] = kept.get(place, 0) + count
    return kept, odd


def added(one: Sums, other: Sums) -> Sums:
    """Return both together."""
    return Sums(
        reasons=_names(one.reasons, other.reasons),
        latency=merged(one.latency, other.latency),
        confidence=merged(one.confidence, other.confidence),
        classes=_names(one.classes, other.classes),
        features=_features(one.features, other.features),
        rss_mb=max(one.rss_mb, other.rss_mb),
        cpu_percent=max(one.cpu_percent, other.cpu_percent),
        temperature_c=_hotter(one.temperature_c, other.temperature_c),
        **{name: getattr(one, name) + getattr(other, name) for name in COUNTS},
    )


COUNTS = tuple(f.name for f in fields(Sums) if f.type is int)


def total(found: Iterable[Sums]) -> Sums:
    """Return all that was FOUND together."""
    result = Sums()
    for one in found:
        result = added(result, one)
    return result


def _plain(histogram: Any) -> dict[str, Any] | None:
    if histogram is None:
        return None
    return {"edges": histogram.edges, "counts": histogram.counts}


def _names(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return both, by name, with what does not fit under `OTHER`."""
    found = dict(one)
    for name, count in other.items():
        known = name in found or len(found) < MAX_NAMES
        place = name if known else OTHER
        found[place] = found.get(place, 0) + count
    return found


def _features(
    one: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Return both by feature; whoever sent fewer bins has counted nothing in the others."""
    found = {name: list(counts) for name, counts in one.items()}
    for name, counts in other.items():
        if name not in found and len(found) >= MAX_FEATURES:
            continue
        mine = found.setdefault(name, [])
        mine.extend([0] * (min(len(counts), MAX_BINS) - len(mine)))
        for place, count in enumerate(counts[:MAX_BINS]):
            mine[place] += count
    return found


def _hotter(one: float | None, other: float | None) -> float | None:
    return max((degrees for degrees in (one, other) if degrees is not None), default=None)
