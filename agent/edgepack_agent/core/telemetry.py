"""Beats of a runner added up to one row per interval. Counts only ever add, so sums stay exact.

Takes what a runner says as it comes, and drops what is not a count.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import msgspec

from edgepack.counting import OTHER
from edgepack.messages import MAX_SPANS, Histogram, Telemetry

__all__ = ["Level", "Tally", "add_rows", "joined"]

Level = Literal["off", "health", "metrics"]
MAX_NAMES = 22 * 1024
"""Bytes of JSON that the classes of a row may take, and its reasons of errors. Every runner counts
256 labels apart, each perhaps others: a row that stands for a month of them, with `MAX_SPANS`
spans, must not become longer than half a message, which is what the outbox puts into one."""
MAX_FEATURES, MAX_BINS = 64, 64
"""Features of a row, and bins of each; a message takes no more."""
FEATURE_BYTES = 10 * 1024
"""Bytes of JSON that the features of a row may take."""
_NUMBER = 24
"""Bytes of a count, its colon, its comma."""


@dataclass(slots=True)
class Tally:
    """What one bundle did since `start` (Unix seconds)."""

    bundle: str
    digest: str
    start: float
    inferences: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    features: dict[str, tuple[int, ...]] = field(default_factory=dict)
    latency: Histogram | None = None
    confidence: Histogram | None = None
    rss_mb: float = 0.0
    cpu_percent: float = 0.0
    temperature_c: float | None = None
    throttled_s: int | None = None

    def add(self, beat: Mapping[str, Any]) -> None:
        """Add what happened since the last BEAT."""
        stats = beat.get("stats", {})
        self.inferences += stats.get("inferences", 0)
        self.errors.update(stats.get("errors", {}))
        self.classes.update(stats.get("classes", {}))
        self.features = _binned(self.features, _features(stats.get("values", ())))
        self.latency = _sum(self.latency, _histogram(stats.get("latency_ms")))
        self.confidence = _sum(self.confidence, _histogram(stats.get("confidence")))
        self.rss_mb = max(self.rss_mb, beat.get("rss_mb", 0.0))
        self.cpu_percent = max(self.cpu_percent, beat.get("cpu_percent", 0.0))
        self.temperature_c = _hotter(self.temperature_c, beat.get("temperature_c"))
        self.throttled_s = _added(self.throttled_s, beat.get("throttled"))

    def row(self, boot: str, seq: int, lost: int, *, end: float, level: Level) -> Telemetry:
        """Return the row for the time up to END (Unix seconds), as much as LEVEL allows."""
        metrics = level == "metrics"
        return Telemetry(
            boot=boot,
            seq=seq,
            start=self.start,
            end=end,
            bundle=self.bundle,
            digest=self.digest,
            inferences=self.inferences,
            errors=_frequent(self.errors),
            latency_ms=self.latency if metrics else None,
            confidence=self.confidence if metrics else None,
            classes=_frequent(self.classes) if metrics else {},
            features=_fitting(self.features) if metrics else {},
            rss_mb=round(self.rss_mb, 1),
            cpu_percent=round(self.cpu_percent, 1),
            temperature_c=self.temperature_c,
            throttled_s=self.throttled_s,
            lost=lost,
        )


def add_rows(older: Telemetry, newer: Telemetry) -> Telemetry | None:
    """Return both rows as one under NEWER's number; None if they are not about the same thing."""
    if (older.boot, older.digest) != (newer.boot, newer.digest):
        return None
    histograms = ((older.latency_ms, newer.latency_ms), (older.confidence, newer.confidence))
    if any(a and b and a.edges != b.edges for a, b in histograms):
        return None
    return Telemetry(
        boot=newer.boot,
        seq=newer.seq,
        start=older.start,
        end=newer.end,
        bundle=newer.bundle,
        digest=newer.digest,
        inferences=older.inferences + newer.inferences,
        errors=_frequent(Counter(older.errors) + Counter(newer.errors)),
        latency_ms=_sum(older.latency_ms, newer.latency_ms),
        confidence=_sum(older.confidence, newer.confidence),
        classes=_frequent(Counter(older.classes) + Counter(newer.classes)),
        features=_fitting(_binned(older.features, newer.features)),
        rss_mb=max(older.rss_mb, newer.rss_mb),
        cpu_percent=max(older.cpu_percent, newer.cpu_percent),
        temperature_c=_hotter(older.temperature_c, newer.temperature_c),
        throttled_s=_added(older.throttled_s, newer.throttled_s),
        lost=older.lost + newer.lost,
        supersedes=joined([*older.supersedes, (older.seq, older.seq), *newer.supersedes])[
            -MAX_SPANS:
        ],
    )


def _frequent(counts: Counter[str]) -> dict[str, int]:
    """Return the most frequent of COUNTS, and the rest as one: the sum stays what it is."""
    kept: dict[str, int] = {}
    left = MAX_NAMES - _length(OTHER)
    for name, count in counts.most_common():
        if _length(name) <= left:
            left -= _length(name)
            kept[name] = count
    rest = counts.total() - sum(kept.values())
    return kept | ({OTHER: kept.get(OTHER, 0) + rest} if rest else {})


def _features(values: Iterable[Any]) -> dict[str, tuple[int, ...]]:
    """Return counts by feature of VALUES as a runner tells them: part, name, moment, counts."""
    return {f"{part}.{name}.{moment}": tuple(counts) for part, name, moment, counts in values}


def _binned(
    one: Mapping[str, tuple[int, ...]], other: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return both, bin by bin; bins at the end that are missing are empty."""
    found = dict(one)
    for name, counts in other.items():
        found[name] = tuple(a + b for a, b in zip_longest(found.get(name, ()), counts, fillvalue=0))
    return found


def _fitting(features: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return as many FEATURES as a row may have, whole ones only, always the same ones."""
    kept: dict[str, tuple[int, ...]] = {}
    left = FEATURE_BYTES
    for name, counts in sorted(features.items()):
        left -= _length(name) + _NUMBER * len(counts)
        if len(counts) <= MAX_BINS and len(kept) < MAX_FEATURES and left >= 0:
            kept[name] = counts
    return kept


def _length(name: str) -> int:
    """Return the bytes that a count under NAME takes in JSON, at most."""
    return len(msgspec.json.encode(name)) + _NUMBER


def _hotter(one: float | None, other: float | None) -> float | None:
    known = [degrees for degrees in (one, other) if degrees is not None]
    return max(known, default=None)


def _added(one: int | None, other: int | None) -> int | None:
    known = [count for count in (one, other) if count is not None]
    return sum(known) if known else None


def joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return SPANS, ranges of numbers, in order, with neighbours as one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def _histogram(raw: Any) -> Histogram | None:
    if not isinstance(raw, Mapping) or not raw.get("counts"):
        return None
    return Histogram(edges=tuple(raw["edges"]), counts=tuple(raw["counts"]))


def _sum(a: Histogram | None, b: Histogram | None) -> Histogram | None:
    if a is None or b is None or a.edges != b.edges:
        return b or a
    return Histogram(
        edges=a.edges, counts=tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))
    )
