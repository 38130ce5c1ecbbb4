"""When what a model sees or says is no longer what it was built for. Pure; told of beats.

A window ends when it has enough values and has lasted long enough: frames a second apart are hardly
different pictures. A feature that is far from the baseline in several windows in a row is an alarm;
one that is near again ends it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack_targets.pipeline.drift import Finding, compare, compare_classes

__all__ = ["Alarm", "Drift", "Rule", "histogram_of"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What counts as drift."""

    min_count: int = 1000
    """Values a window has at least."""
    min_s: float = 3600.0
    """Seconds it lasts at least."""
    psi: float = 0.1
    """Corrected population stability index that matters."""
    p: float = 0.001
    """Probability, over all features of a window together, under which it is not chance."""
    windows: int = 2
    """Windows in a row."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A feature drifts, from now on or no longer."""

    feature: str
    finding: Finding
    over: bool = False


@dataclass(slots=True)
class Drift:
    """The watch over one bundle.

    Args:
        baseline: `drift` of its manifest.
        rule: What counts.
        since: When it began, seconds.
    """

    baseline: Mapping[str, Any]
    rule: Rule
    since: float
    counts: dict[str, Counter[Any]] = field(default_factory=dict)
    """By feature: bin or label to count, of the window that is being filled."""
    last: dict[str, Finding] = field(default_factory=dict)
    """Of the last whole window."""
    shown: dict[str, Counter[Any]] = field(default_factory=dict)
    """Counts of the last whole window."""
    far: Counter[str] = field(default_factory=Counter)
    """Windows in a row in which a feature was far away."""

    @property
    def alarms(self) -> list[str]:
        """The features that drift."""
        return sorted(name for name, count in self.far.items() if count >= self.rule.windows)

    def add(self, stats: Mapping[str, Any], now: float) -> list[Alarm]:
        """Take what a beat has counted; return what begins or ends to drift with it."""
        for feature, counts in _counted(stats, self.baseline):
            self.counts.setdefault(feature, Counter()).update(counts)
        most = max((counts.total() for counts in self.counts.values()), default=0)
        if most < self.rule.min_count or now - self.since < self.rule.min_s:
            return []
        self.since = now
        self.shown, self.counts = self.counts, {}
        self.last = {name: self._compared(name, counts) for name, counts in self.shown.items()}
        return list(self._judged())

    def _compared(self, feature: str, counts: Counter[Any]) -> Finding:
        if feature == "classes":
            return compare_classes(self.baseline["classes"], counts)
        before = histogram_of(self.baseline, feature)["counts"]
        return compare(before, [counts[place] for place in range(len(before))])

    def _judged(self) -> Iterator[Alarm]:
        for feature, finding in self.last.items():
            far = finding.psi > self.rule.psi and finding.p < self.rule.p / len(self.last)
            before = self.far[feature]
            self.far[feature] = before + 1 if far else 0
            if self.far[feature] == self.rule.windows:
                yield Alarm(feature, finding)
            elif not far and before >= self.rule.windows:
                yield Alarm(feature, finding, over=True)


def histogram_of(baseline: Mapping[str, Any], feature: str) -> Mapping[str, Any]:
    """Return the histogram of FEATURE: `confidence`, or `inputs.NAME.mean` and the like."""
    part, _, rest = feature.partition(".")
    name, _, moment = rest.rpartition(".")
    found: Mapping[str, Any] = baseline[part][name][moment] if rest else baseline[feature]
    return found


def _counted(
    stats: Mapping[str, Any], baseline: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[Any, int]]]:
    """Yield the counts that can be held against BASELINE: those with the same edges."""
    if "classes" in baseline and stats.get("classes"):
        yield "classes", stats["classes"]
    confidence = stats.get("confidence") or {}
    if "confidence" in baseline and _same_edges(confidence, baseline["confidence"]):
        yield "confidence", dict(enumerate(confidence["counts"]))
    # The runner counts these in the bins of the baseline itself.
    for part, name, moment, counts in stats.get("values", ()):
        known = baseline.get(part, {}).get(name, {}).get(moment)
        if known and len(counts) <= len(known["counts"]):
            yield f"{part}.{name}.{moment}", dict(enumerate(counts))


def _same_edges(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one.get("edges")) and list(one["edges"]) == list(other["edges"])
