"""Whether what a release sees and says is no longer what it was built for. Pure.

Every feature gets a corrected population stability index and a G-test (`edgepack_targets`, which
devices use too). The tests of one look are many, so their p-values are corrected by Holm's method:
the chance of even one false alarm stays under the limit, however the features depend on each
other. That is what an alarm at night needs; a procedure that only bounds the *share* of false ones
(Benjamini and Hochberg) assumes more and promises less.

Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack_targets.pipeline.baseline import Baseline
from edgepack_targets.pipeline.drift import Finding, compare, compare_classes

__all__ = ["Drift", "Rule", "Seen", "holm", "of_windows", "seen_of", "verdicts"]

CLASSES, CONFIDENCE = "classes", "confidence"


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as drift."""

    min_count: int = 1000
    """Values a feature must have on either side; a baseline needs a fifth of it."""
    psi: float = 0.1
    """Corrected index that matters."""
    p: float = 0.001
    """Chance of a false alarm, over all features together."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Counts of one feature: what there is to compare."""

    feature: str
    names: tuple[str, ...]
    """Of the bins: labels, or lower edges."""
    before: tuple[int, ...]
    now: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """What is said of one feature."""

    feature: str
    psi: float
    p: float
    """Of this feature alone."""
    adjusted: float
    """The same, corrected for how many features were looked at."""
    before: int
    """Values compared with."""
    now: int
    verdict: str
    """`drift`, `none` or `too_few`."""
    seen: Seen


def holm(values: Sequence[float]) -> list[float]:
    """Return p-VALUES corrected for being many, in their order."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    found, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, values[place] * (len(values) - rank)))
        found[place] = highest
    return found


def seen_of(
    baseline: Baseline,
    classes: Mapping[str, int],
    confidence: Mapping[str, Any] | None,
    features: Mapping[str, Sequence[int]],
) -> list[Seen]:
    """Return what can be held against BASELINE: what it knows, counted between its edges."""
    found = []
    if baseline.classes and classes:
        found.append(_labels(baseline.classes, classes))
    known = baseline.confidence
    if known and confidence and list(confidence["edges"]) == list(known.edges):
        counts = tuple(confidence["counts"])
        found.append(Seen(CONFIDENCE, _edges(known.edges), known.counts, counts))
    for feature, values in sorted(features.items()):
        histogram = baseline.histogram(feature)
        if histogram and len(values) <= len(histogram.counts):
            filled = (*values, *[0] * (len(histogram.counts) - len(values)))
            found.append(Seen(feature, _edges(histogram.edges), histogram.counts, filled))
    return found


def of_windows(
    before: tuple[Mapping[str, int], Mapping[str, Any] | None, Mapping[str, Sequence[int]]],
    now: tuple[Mapping[str, int], Mapping[str, Any] | None, Mapping[str, Sequence[int]]],
) -> list[Seen]:
    """Return what two stretches of time have in common: classes, confidence, features."""
    found = []
    if before[0] and now[0]:
        found.append(_labels(before[0], now[0]))
    one, other = before[1], now[1]
    if one and other and list(one["edges"]) == list(other["edges"]):
        names = _edges(one["edges"])
        found.append(Seen(CONFIDENCE, names, tuple(one["counts"]), tuple(other["counts"])))
    for feature in sorted(before[2].keys() & now[2].keys()):
        size = max(len(before[2][feature]), len(now[2][feature]))
        bins = tuple(str(place) for place in range(size))
        sides = [(*c, *[0] * (size - len(c))) for c in (before[2][feature], now[2][feature])]
        found.append(Seen(feature, bins, sides[0], sides[1]))
    return found


def verdicts(found: Sequence[Seen], rule: Rule) -> list[Drift]:
    """Return what is to be said of each feature of FOUND, the furthest away first."""
    enough = [seen for seen in found if _enough(seen, rule)]
    findings = [_compared(seen) for seen in enough]
    adjusted = holm([finding.p for finding in findings])
    told = [
        _drift(seen, finding, p, rule)
        for seen, finding, p in zip(enough, findings, adjusted, strict=True)
    ]
    few = [_drift(seen, None, 1.0, rule) for seen in found if not _enough(seen, rule)]
    return sorted([*told, *few], key=lambda d: (d.verdict != "drift", -d.psi, d.feature))


def _enough(seen: Seen, rule: Rule) -> bool:
    return sum(seen.now) >= rule.min_count and sum(seen.before) * 5 >= rule.min_count


def _compared(seen: Seen) -> Finding:
    if seen.feature == CLASSES:
        sides = (seen.before, seen.now)
        before, now = (dict(zip(seen.names, side, strict=True)) for side in sides)
        return compare_classes(before, now)
    return compare(seen.before, seen.now)


def _drift(seen: Seen, finding: Finding | None, adjusted: float, rule: Rule) -> Drift:
    psi, p = (finding.psi, finding.p) if finding else (0.0, 1.0)
    far = psi > rule.psi and adjusted < rule.p
    return Drift(
        feature=seen.feature,
        psi=psi,
        p=p,
        adjusted=adjusted,
        before=sum(seen.before),
        now=sum(seen.now),
        verdict="too_few" if finding is None else "drift" if far else "none",
        seen=seen,
    )


def _labels(before: Mapping[str, int], now: Mapping[str, int]) -> Seen:
    known = before.keys() | now.keys()
    names = tuple(sorted(known, key=lambda name: (-before.get(name, 0), name)))
    sides = [tuple(side.get(name, 0) for name in names) for side in (before, now)]
    return Seen(CLASSES, names, sides[0], sides[1])


def _edges(edges: Sequence[float]) -> tuple[str, ...]:
    return (f"<{edges[0]:g}" if edges else "all", *(f"{edge:g}" for edge in edges))
