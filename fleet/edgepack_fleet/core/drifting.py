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
from typing import Any, Literal

from edgepack_targets.pipeline.baseline import Baseline
from edgepack_targets.pipeline.drift import Finding, compare, compare_classes

__all__ = [
    "Drift",
    "Lack",
    "Outlook",
    "Rule",
    "Seen",
    "holm",
    "of_windows",
    "outlook",
    "seen_of",
    "verdicts",
]

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
class Lack:
    """Values that a feature has, and how many it takes to judge it."""

    side: Literal["now", "before"]
    """`before`: what it is compared with is too little."""
    found: int
    needed: int

    def __str__(self) -> str:
        """Return it for people."""
        of_what = "values" if self.side == "now" else "values to compare with"
        return f"{self.found:,} of {self.needed:,} {of_what}"


@dataclass(frozen=True, slots=True)
class Drift:
    """What is said of one feature."""

    feature: str
    psi: float
    """0 while there are too few values to say."""
    p: float
    """Of this feature alone; 1 while there are too few values to say."""
    adjusted: float
    """The same, corrected for how many features were looked at."""
    before: int
    """Values compared with."""
    now: int
    verdict: str
    """`drift`, `none` or `too_few`."""
    seen: Seen
    lack: Lack | None = None
    """What it takes to judge it; None: it is judged."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What all features together come to."""

    verdict: Literal["drift", "none", "partly", "too_few", "nothing"]
    """`partly`: some do not drift, of the others there are too few values."""
    said: str
    judged: int
    features: int


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
    enough = [seen for seen in found if _lack(seen, rule) is None]
    findings = [_compared(seen) for seen in enough]
    adjusted = holm([finding.p for finding in findings])
    told = [
        _drift(seen, finding, p, rule)
        for seen, finding, p in zip(enough, findings, adjusted, strict=True)
    ]
    few = [_drift(seen, None, 1.0, rule) for seen in found if _lack(seen, rule) is not None]
    return sorted([*told, *few], key=lambda d: (d.verdict != "drift", -d.psi, d.feature))


def outlook(found: Sequence[Drift]) -> Outlook:
    """Return what the features FOUND come to; free of drift is only what could be judged."""
    far = sum(drift.verdict == "drift" for drift in found)
    lacks = [drift.lack for drift in found if drift.lack is not None]
    judged, every = len(found) - len(lacks), len(found)
    if far:
        return Outlook("drift", f"{far} of {_features(every)} drifting", judged, every)
    if not found:
        return Outlook("nothing", "nothing to compare", 0, 0)
    if not judged:
        nearest = max(lacks, key=lambda lack: lack.found / lack.needed)
        return Outlook("too_few", f"not judged yet: {nearest}", 0, every)
    if lacks:
        said = f"no drift as far as judged: {judged} of {_features(every)}"
        return Outlook("partly", said, judged, every)
    return Outlook("none", "no drift", judged, every)


def _features(count: int) -> str:
    return "1 feature" if count == 1 else f"{count} features"


def _lack(seen: Seen, rule: Rule) -> Lack | None:
    """Return what is missing to judge a feature; None: nothing is."""
    if sum(seen.now) < rule.min_count:
        return Lack("now", sum(seen.now), rule.min_count)
    if sum(seen.before) * 5 < rule.min_count:
        return Lack("before", sum(seen.before), -(-rule.min_count // 5))
    return None


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
        lack=_lack(seen, rule),
    )


def _labels(before: Mapping[str, int], now: Mapping[str, int]) -> Seen:
    known = before.keys() | now.keys()
    names = tuple(sorted(known, key=lambda name: (-before.get(name, 0), name)))
    sides = [tuple(side.get(name, 0) for name in names) for side in (before, now)]
    return Seen(CLASSES, names, sides[0], sides[1])


def _edges(edges: Sequence[float]) -> tuple[str, ...]:
    return (f"<{edges[0]:g}" if edges else "all", *(f"{edge:g}" for edge in edges))
