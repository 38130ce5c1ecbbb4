"""Counts between fixed edges: added up, made coarser, read as quantiles. Pure.

A histogram is plain JSON, `{"edges": [...], "counts": [...]}`, with one count more than edges; bin
`i` holds values from edge `i - 1` up to, but not including, edge `i`, and the ends are open. Two
with other edges are added on the edges that both have: no count is lost, only resolution.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = [
    "Histogram",
    "Quantile",
    "between",
    "checked",
    "coarser",
    "counted",
    "like",
    "merged",
    "p95_ratio",
    "quantile",
]

Histogram = Mapping[str, Any]
MAX_EDGES = 1000
COARSER = 4
"""By how many times edges may be coarser for all to be told between them."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile, as well as it can be told from counts."""

    value: float
    """Linear within its bin; in an open bin its only edge."""
    low: float | None
    """Edges of the bin it is certainly in; None: open."""
    high: float | None


def checked(found: Histogram | None) -> dict[str, Any] | None:
    """Return FOUND as plain JSON; None if it is none, or no histogram can be like that."""
    if not found:
        return None
    edges, counts = list(found["edges"]), list(found["counts"])
    rises = all(a < b for a, b in pairwise(edges))
    finite = all(math.isfinite(edge) for edge in edges)
    if not rises or not finite or len(counts) != len(edges) + 1 or len(edges) > MAX_EDGES:
        return None
    return {"edges": edges, "counts": counts}


def counted(histogram: Histogram | None) -> int:
    """Return how many values HISTOGRAM holds."""
    return sum(histogram["counts"]) if histogram else 0


def coarser(histogram: Histogram, edges: Sequence[float]) -> dict[str, Any]:
    """Return HISTOGRAM on EDGES, all of which it must have."""
    counts = [0] * (len(edges) + 1)
    for place, count in enumerate(histogram["counts"]):
        counts[bisect_right(edges, histogram["edges"][place - 1]) if place else 0] += count
    return {"edges": list(edges), "counts": counts}


def between(found: Histogram | None, edges: Sequence[float]) -> dict[str, Any] | None:
    """Return what was FOUND between EDGES, if it has them all; finer ones lose nothing."""
    return coarser(found, edges) if found and set(edges) <= set(found["edges"]) else None


def _alike(
    one: Histogram | None, other: Histogram | None
) -> tuple[Histogram | None, Histogram | None]:
    """Return both on the edges that both have: quantiles of finer bins would differ by that."""
    if not one or not other or list(one["edges"]) == list(other["edges"]):
        return one, other
    edges = sorted(set(one["edges"]) & set(other["edges"]))
    return coarser(one, edges), coarser(other, edges)


def merged(one: Histogram | None, other: Histogram | None) -> dict[str, Any] | None:
    """Return the sum of two histograms, on the edges that both have."""
    one, other = _alike(one, other)
    if not one or not other:
        found = one or other
        return dict(found) if found else None
    pairs = zip(one["counts"], other["counts"], strict=True)
    return {"edges": list(one["edges"]), "counts": [a + b for a, b in pairs]}


def like(histograms: Iterable[Histogram | None]) -> tuple[dict[str, Any] | None, int]:
    """Return the sum of HISTOGRAMS of many devices, and how many values had to be left out.

    The edges that most values lie between count, or the somewhat coarser ones that an older agent
    has in common with them; what has not all of them is left out, so that one device with edges
    of its own does not blur what is known of all others.
    """
    sums: dict[tuple[float, ...], list[int]] = {}
    for found in histograms:
        if found:
            counts = sums.setdefault(tuple(found["edges"]), [0] * len(found["counts"]))
            for place, count in enumerate(found["counts"]):
                counts[place] += count
    if not sums:
        return None, 0
    most = max(sums, key=lambda edges: (sum(sums[edges]), len(edges), edges))
    shared = min((edges for edges in sums if _is_like(edges, most)), key=len)
    total: dict[str, Any] | None = None
    out = 0
    for edges, counts in sums.items():
        if set(shared) <= set(edges):
            total = merged(total, coarser({"edges": edges, "counts": counts}, shared))
        else:
            out += sum(counts)
    return total, out


def _is_like(edges: Sequence[float], most: Sequence[float]) -> bool:
    return set(edges) <= set(most) and len(most) <= COARSER * len(edges)


def quantile(histogram: Histogram | None, share: float) -> Quantile | None:
    """Return the value that SHARE (0 to 1) of the values do not exceed; None: there are none."""
    total = counted(histogram)
    if not histogram or not total or not histogram["edges"]:
        return None
    edges, wanted, seen = histogram["edges"], share * total, 0.0
    for place, count in enumerate(histogram["counts"]):
        if count and seen + count >= wanted:
            low = edges[place - 1] if place else None
            high = edges[place] if place < len(edges) else None
            return _within(low, high, (wanted - seen) / count)
        seen += count
    return None


def p95_ratio(before: Histogram | None, after: Histogram | None, least: int) -> float | None:
    """Return how many times the 95 % quantile of AFTER is that of BEFORE, on edges of both.

    None: one of them holds fewer than LEAST values, or they have no edges in common.
    """
    before, after = _alike(before, after)
    if min(counted(before), counted(after)) < least:
        return None
    usual, now = quantile(before, 0.95), quantile(after, 0.95)
    return now.value / usual.value if usual and now and usual.value else None


def _within(low: float | None, high: float | None, part: float) -> Quantile:
    if low is None or high is None:
        return Quantile(float(high if low is None else low), low, high)  # type: ignore[arg-type]
    return Quantile(low + (high - low) * min(1.0, max(0.0, part)), low, high)
