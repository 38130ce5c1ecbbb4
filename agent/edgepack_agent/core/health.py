"""Is the model that runs good? A pure rule over heartbeats, the clock passed in.

A process that is up proves nothing. The new model must keep beating, which its runner does only
while the inference thread makes progress; it must not fail more often than the rule allows, nor
take more memory than its manifest says, nor be slower beside the model before it than is allowed.
What clients, sources or a full queue did wrong is not held against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgepack.counting import faults

__all__ = ["Latencies", "Rule", "Verdict", "Vitals", "beat", "judge"]

_REMEMBERED = 20_000
"""Inferences after which older ones begin to count half."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """A histogram of milliseconds; the last count has no upper edge."""

    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """How many inferences it holds."""
        return sum(self.counts)

    def add(self, raw: Any) -> "Latencies":
        """Return it with the histogram RAW of a beat added; what is none is left out."""
        if not isinstance(raw, Mapping) or not raw.get("counts"):
            return self
        edges, counts = tuple(raw["edges"]), tuple(raw["counts"])
        if edges != self.edges:
            return Latencies(edges, counts)
        share = 0.5 if self.total > _REMEMBERED else 1.0
        both = zip(self.counts, counts, strict=True)
        return Latencies(edges, tuple(share * old + new for old, new in both))

    def quantile(self, share: float) -> float:
        """Return the milliseconds that SHARE of the inferences stayed below, in their bucket."""
        wanted, seen = share * self.total, 0.0
        bounds = (0.0, *self.edges, self.edges[-1] if self.edges else 0.0)
        for low, high, count in zip(bounds, bounds[1:], self.counts, strict=False):
            if count and seen + count >= wanted:
                return low + (high - low) * (wanted - seen) / count
            seen += count
        return bounds[-1]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of a model on probation."""

    probation_s: float
    max_silence_s: float = 10.0
    max_error_share: float = 0.1
    min_errors: int = 3
    """Fewer errors than this are chance."""
    max_rss_mb: float | None = None
    max_p95_ratio: float | None = None
    """Of its 95 % latency to that of the model before."""
    min_samples: int = 50
    """With fewer inferences of either model, latencies are not compared."""
    before: Latencies = field(default_factory=Latencies)
    """Of the model before."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What has been seen since the model began to answer. Times are monotonic seconds."""

    since: float
    last_beat: float
    beats: int = 0
    inferences: int = 0
    errors: int = 0
    rss_mb: tuple[float, float] = (0.0, 0.0)
    """Of the last two beats: one alone may be a peak."""
    latencies: Latencies = field(default_factory=Latencies)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Good, or why not."""

    good: bool
    reason: str = ""
    detail: dict[str, float] = field(default_factory=dict)


def beat(vitals: Vitals, now: float, said: Mapping[str, Any]) -> Vitals:
    """Return VITALS after the heartbeat SAID at NOW, with the counts since the one before."""
    stats = said.get("stats", {})
    return replace(
        vitals,
        last_beat=now,
        beats=vitals.beats + 1,
        inferences=vitals.inferences + stats.get("inferences", 0),
        errors=vitals.errors + faults(stats.get("errors", {})),
        rss_mb=(vitals.rss_mb[1], float(said.get("rss_mb", 0.0))),
        latencies=vitals.latencies.add(stats.get("latency_ms")),
    )


def judge(vitals: Vitals, rule: Rule, now: float) -> Verdict | None:
    """Return the verdict at NOW; None while it is too early for one."""
    asked = vitals.inferences + vitals.errors
    if vitals.errors >= rule.min_errors and vitals.errors > rule.max_error_share * asked:
        return Verdict(False, "error_rate")
    if now - vitals.last_beat > rule.max_silence_s:
        return Verdict(False, "no_heartbeat")
    rss_mb = min(vitals.rss_mb)
    if rule.max_rss_mb is not None and rss_mb > rule.max_rss_mb:
        return Verdict(False, "memory_above_limit", {"rss_mb": rss_mb, "limit": rule.max_rss_mb})
    if now - vitals.since < rule.probation_s or not vitals.beats:
        return None
    return _too_slow(vitals.latencies, rule) or Verdict(True)


def _too_slow(after: Latencies, rule: Rule) -> Verdict | None:
    before = rule.before
    if rule.max_p95_ratio is None or min(before.total, after.total) < rule.min_samples:
        return None
    was, found = before.quantile(0.95), after.quantile(0.95)
    if found <= rule.max_p95_ratio * was:
        return None
    detail = {"p95_ms": round(found, 3), "before_ms": round(was, 3), "limit": rule.max_p95_ratio}
    return Verdict(False, "latency_above_limit", detail)
