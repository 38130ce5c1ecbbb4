"""What happened since the last beat, as counts that merge by addition. Keeps no single value."""

import threading
from bisect import bisect_right
from collections import Counter
from typing import Any

__all__ = ["CONFIDENCE_EDGES", "LATENCY_EDGES_MS", "Statistics"]

LATENCY_EDGES_MS = (
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0,
    1000.0, 2000.0, 5000.0, 10000.0,
)  # fmt: skip
CONFIDENCE_EDGES = tuple(i / 20 for i in range(1, 20))


class Statistics:
    """Counts of inferences, errors, latencies, confidences and classes; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._inferences = 0
        self._errors: Counter[str] = Counter()
        self._latency = [0] * (len(LATENCY_EDGES_MS) + 1)
        self._confidence = [0] * (len(CONFIDENCE_EDGES) + 1)
        self._classes: Counter[str] = Counter()

    def inferred(self, ms: float) -> None:
        """Count an inference whose runtime call took MS milliseconds."""
        with self._lock:
            self._inferences += 1
            self._latency[bisect_right(LATENCY_EDGES_MS, ms)] += 1

    def decided(self, label: str, confidence: float) -> None:
        """Count a decision for LABEL, CONFIDENCE in 0..1."""
        with self._lock:
            self._classes[label] += 1
            self._confidence[bisect_right(CONFIDENCE_EDGES, confidence)] += 1

    def failed(self, reason: str) -> None:
        """Count something that gave no answer, by REASON."""
        with self._lock:
            self._errors[reason] += 1

    def take(self) -> dict[str, Any]:
        """Return what was counted since the last call, and start from zero."""
        with self._lock:
            taken = {
                "inferences": self._inferences,
                "errors": dict(self._errors),
                "latency_ms": {"edges": LATENCY_EDGES_MS, "counts": self._latency},
                "confidence": {"edges": CONFIDENCE_EDGES, "counts": self._confidence},
                "classes": dict(self._classes),
            }
            self._reset()
        return taken
