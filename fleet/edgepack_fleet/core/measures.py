"""What is measured of a model on a device, added up report by report, and the metrics of it.

Kept with the job as plain JSON. Latencies of the model before are kept beside those of the new
one, so that their ratio can be told without the reports themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from edgepack.counting import faults
from edgepack_fleet.core.histograms import checked, merged, p95_ratio

__all__ = ["add", "baseline", "drifted", "metrics"]

MIN_SAMPLES = 50
"""Inferences of either model below which nothing is said of latency or errors."""
Counts = dict[str, Any]


def baseline(reports: Sequence[Mapping[str, Any]]) -> Counts:
    """Return the latencies of the model before, of the telemetry REPORTS about it."""
    total: Counts | None = None
    for report in reports:
        total = merged(total, checked(report.get("latency_ms")))
    return {"before": total} if total else {}


def add(kept: Mapping[str, Any], report: Mapping[str, Any]) -> Counts:
    """Return KEPT with a telemetry REPORT about the new model added."""
    return dict(kept) | {
        "inferences": kept.get("inferences", 0) + report.get("inferences", 0),
        "errors": kept.get("errors", 0) + faults(report.get("errors", {})),
        "rss_mb": max(kept.get("rss_mb", 0.0), report.get("rss_mb", 0.0)),
        "after": merged(kept.get("after"), checked(report.get("latency_ms"))),
    }


def drifted(kept: Mapping[str, Any], feature: str, *, over: bool) -> Counts:
    """Return KEPT after the device has said that FEATURE drifts, or that this is OVER."""
    others = [name for name in kept.get("drift", []) if name != feature]
    return dict(kept) | {"drift": others if over else [*others, feature]}


def metrics(kept: Mapping[str, Any], detail: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of one device, as far as they are known.

    Args:
        kept: What was added up of its telemetry.
        detail: Of its last word on the job; what it compared itself goes first.
    """
    return _told(detail) | _counted(kept) | _compared(kept, detail)


def _told(detail: Mapping[str, Any]) -> dict[str, float]:
    found = {"agreement": _at(detail, "shadow", "agreement")}
    score = _at(detail, "exam", "score")
    found["exam"] = score if score is not None else _at(detail, "score")
    return {name: value for name, value in found.items() if value is not None}


def _counted(kept: Mapping[str, Any]) -> dict[str, float]:
    drift = {"drift": float(bool(kept.get("drift")))}
    if "inferences" not in kept:
        return drift if "drift" in kept else {}
    found = drift | {"memory": float(kept["rss_mb"])}
    asked = kept["inferences"] + kept["errors"]
    if asked >= MIN_SAMPLES:
        found["error_rate"] = kept["errors"] / asked
    return {k: v for k, v in found.items() if k != "memory" or v > 0}


def _compared(kept: Mapping[str, Any], detail: Mapping[str, Any]) -> dict[str, float]:
    told = _at(detail, "shadow", "p95_ratio")
    if told is not None:
        return {"p95_ratio": told}
    ratio = p95_ratio(kept.get("before"), kept.get("after"), MIN_SAMPLES)
    return {} if ratio is None else {"p95_ratio": ratio}


def _at(detail: Any, *path: str) -> float | None:
    """Return the number at PATH in what a device said; None if there is none."""
    for name in path:
        detail = detail[-1] if isinstance(detail, list) and detail else detail
        detail = detail.get(name) if isinstance(detail, Mapping) else None
    number = isinstance(detail, int | float) and not isinstance(detail, bool)
    return float(detail) if number and abs(detail) < float("inf") else None
