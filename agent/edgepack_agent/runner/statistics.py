"""What happened, as counts that merge by addition: since the last beat, and in all.

Keeps no single value.
"""

import threading
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from edgepack.counting import CONFIDENCE_EDGES, LATENCY_EDGES_MS, MAX_LABEL, OTHER

__all__ = ["MAX_LABELS", "Statistics", "Total"]

MAX_LABELS = 256
"""Labels that are counted apart; what comes after them is `OTHER`."""


@dataclass(slots=True)
class Total:
    """Everything since the start of the process."""

    inferences: int = 0
    seconds: float = 0.0
    """Of all runtime calls together."""
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))
    errors: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)


class Statistics:
    """Counts of inferences, errors, latencies, confidences and classes; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Total()
        self._reset()

    def _reset(self) -> None:
        self._inferences = 0
        self._errors: Counter[str] = Counter()
        self._latency = [0] * (len(LATENCY_EDGES_MS) + 1)
        self._confidence = [0] * (len(CONFIDENCE_EDGES) + 1)
        self._classes: Counter[str] = Counter()
        self._values: dict[tuple[str, str, str], list[int]] = {}

    def inferred(self, ms: float) -> None:
        """Count an inference whose runtime call took MS milliseconds."""
        with self._lock:
            place = bisect_right(LATENCY_EDGES_MS, ms)
            self._inferences += 1
            self._latency[place] += 1
            self._total.inferences += 1
            self._total.latency[place] += 1
            self._total.seconds += ms / 1000

    def decided(self, label: str, confidence: float) -> None:
        """Count a decision for LABEL, CONFIDENCE in 0..1."""
        with self._lock:
            known = label in self._total.classes or len(self._total.classes) < MAX_LABELS
            # A longer one could make a beat outgrow a line (`wire`).
            label = label if known and len(label) <= MAX_LABEL else OTHER
            self._classes[label] += 1
            self._total.classes[label] += 1
            self._confidence[bisect_right(CONFIDENCE_EDGES, confidence)] += 1

    def measured(self, part: str, name: str, moment: str, place: int) -> None:
        """Count a value of MOMENT (`mean`, `spread`) of the tensor NAME, in bin PLACE.

        Args:
            part: `inputs` or `outputs`.
            name: The tensor's.
            moment: What of it.
            place: The bin of the baseline's histogram that it lies in.
        """
        with self._lock:
            counts = self._values.setdefault((part, name, moment), [])
            counts.extend([0] * (place + 1 - len(counts)))
            counts[place] += 1

    def failed(self, reason: str) -> None:
        """Count something that gave no answer, by REASON."""
        with self._lock:
            self._errors[reason] += 1
            self._total.errors[reason] += 1

    def total(self) -> Total:
        """Return everything since the start, as a copy."""
        with self._lock:
            now = self._total
            return Total(
                now.inferences, now.seconds, list(now.latency),
                Counter(now.errors), Counter(now.classes),
            )  # fmt: skip

    def take(self) -> dict[str, Any]:
        """Return what was counted since the last call, and start from zero."""
        with self._lock:
            taken = {
                "inferences": self._inferences,
                "errors": dict(self._errors),
                "latency_ms": {"edges": LATENCY_EDGES_MS, "counts": self._latency},
                "confidence": {"edges": CONFIDENCE_EDGES, "counts": self._confidence},
                "classes": dict(self._classes),
                "values": [[*key, counts] for key, counts in self._values.items()],
            }
            self._reset()
        return taken
