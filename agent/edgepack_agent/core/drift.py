"""When what a model sees or says is no longer what it was built for. Pure; told of beats.

A window ends when it has enough values and has lasted long enough: frames a second apart are hardly
different pictures. A feature that is far from the baseline in several windows in a row is an alarm;
one that is near again ends it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack_targets.pipeline.baseline import Baseline
from edgepack_targets.pipeline.drift import Finding, compare, compare_classes

__all__ = ["Alarm", "Drift", "Rule"]


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
        baseline: What its manifest says.
        rule: What counts.
        since: When it began, seconds.
    """

    baseline: Baseline
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

    @property
    def filled(self) -> int:
        """Values of the feature that has most of them, in the window that is being filled."""
        return max((counts.total() for counts in self.counts.values()), default=0)

    def add(self, stats: Mapping[str, Any], now: float) -> list[Alarm]:
        """Take what a beat has counted; return what begins or ends to drift with it."""
        for feature, counts in _counted(stats, self.baseline):
            self.counts.setdefault(feature, Counter()).update(counts)
        if self.filled < self.rule.min_count or now - self.since < self.rule.min_s:
            return []
        self.since = now
        self.shown, self.counts = self.counts, {}
        self.last = {name: self._compared(name, counts) for name, counts in self.shown.items()}
        return list(self._judged())

    def _compared(self, feature: str, counts: Counter[Any]) -> Finding:
        if feature == "classes":
            return compare_classes(self.baseline.classes, counts)
        histogram = self.baseline.histogram(feature)
        before = histogram.counts if histogram else ()
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


def _counted(
    stats: Mapping[str, Any], baseline: Baseline
) -> Iterator[tuple[str, Mapping[Any, int]]]:
    """Yield the counts that can be held against BASELINE: those with the same edges."""
    if baseline.classes and stats.get("classes"):
        yield "classes", stats["classes"]
    confidence, known = stats.get("confidence") or {}, baseline.confidence
    if known and list(confidence.get("edges", ())) == list(known.edges):
        yield "confidence", dict(enumerate(confidence["counts"]))
    # The runner counts these in the bins of the baseline itself.
    for part, name, moment, counts in stats.get("values", ()):
        feature = f"{part}.{name}.{moment}"
        histogram = baseline.histogram(feature)
        if histogram and len(counts) <= len(histogram.counts):
            yield feature, dict(enumerate(counts))
