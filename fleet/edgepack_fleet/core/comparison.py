"""Two releases, compared: what differs, by how much, and how sure that is. Pure.

Requests of one device are not independent: one bad box makes a thousand errors. So shares get
Newcombe's interval with the *effective* sample size, the number of requests less what the spread
between devices takes (the design effect), and latencies a bootstrap over devices. A device that has
run both releases is drawn with both, which takes out how fast the box is.

Sources: Newcombe, Interval estimation for the difference between independent proportions, 1998
(method 10); Kish, Survey Sampling, 1965 (design effect); Efron and Tibshirani, An Introduction to
the Bootstrap, 1993 (percentile interval).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack_fleet.core.histograms import like, merged, quantile

__all__ = [
    "Asked",
    "Interval",
    "Share",
    "difference",
    "effective",
    "mean_interval",
    "ratio",
    "wilson",
]

Z = 1.959963984540054
"""Of a 95 % interval."""
DRAWS = 400
BLOCKS = 200
"""Devices that are drawn apart; of more, some are drawn together, which costs no validity."""
MIN_DEVICES = 2


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where it is with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What one device was asked, and how often it failed."""

    requests: int
    errors: int


@dataclass(frozen=True, slots=True)
class Share:
    """A share of requests, and how many independent ones it is worth."""

    value: float
    requests: int
    effective: float


def effective(devices: Sequence[Asked]) -> Share | None:
    """Return the error rate over DEVICES; None: nothing was asked.

    The effective size is the number of requests divided by the design effect; of one device alone
    nothing is known of the spread between devices, and the design effect is taken as 1.
    """
    devices = [device for device in devices if device.requests]
    requests = sum(device.requests for device in devices)
    if not requests:
        return None
    rate, count = sum(device.errors for device in devices) / requests, len(devices)
    chance = rate * (1 - rate) / requests
    if count < MIN_DEVICES or not chance:
        return Share(rate, requests, float(requests))
    squares = sum((device.errors - rate * device.requests) ** 2 for device in devices)
    between = count / (count - 1) * squares / requests**2
    return Share(rate, requests, requests / max(1.0, between / chance))


def wilson(share: float, size: float) -> Interval:
    """Return Wilson's score interval of a SHARE of SIZE trials; more than 0."""
    z2 = Z * Z
    middle = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = Z / (1 + z2 / size) * math.sqrt(share * (1 - share) / size + z2 / (4 * size * size))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def difference(a: Share, b: Share) -> Interval:
    """Return by how much B is above A."""
    one, other = wilson(a.value, a.effective), wilson(b.value, b.effective)
    value = other.value - one.value
    low = math.hypot(other.value - other.low, one.high - one.value)
    high = math.hypot(other.high - other.value, one.value - one.low)
    return Interval(value, max(-1.0, value - low), min(1.0, value + high))


Pair = tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]
"""Latencies of one device under A and under B; None: it did not run it."""


def ratio(devices: Sequence[Pair], share: float, seed: int) -> Interval | None:
    """Return B's quantile SHARE of latency to A's; None: too few devices, or no latencies.

    Args:
        devices: One pair a device.
        share: 0 to 1.
        seed: Of the draws; the same data and seed give the same answer.
    """
    layers = _layers(_alike(devices))
    sides = [sum(1 for pair in devices if pair[side]) for side in (0, 1)]
    whole = _ratio([pair for layer in layers for pair in layer], share)
    if whole is None or min(sides) < MIN_DEVICES:
        return None
    dice = random.Random(seed)  # noqa: S311  draws of a bootstrap, no secrets
    layers = [_blocks(layer, dice) for layer in layers]
    drawn = []
    for _ in range(DRAWS):
        found = _ratio([p for layer in layers for p in dice.choices(layer, k=len(layer))], share)
        if found is not None:
            drawn.append(found)
    if not drawn:
        return None
    drawn.sort()
    cut = int(0.025 * len(drawn))
    return Interval(whole, min(whole, drawn[cut]), max(whole, drawn[-1 - cut]))


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the mean of VALUES, one a device, from 0 to 1; None: there are none.

    Wilson's interval with the size that the spread between devices is worth; of few devices it is
    wide, of devices that all say 1 it does not become a point.
    """
    if not values:
        return None
    mean, count = sum(values) / len(values), len(values)
    size = float(count)
    spread = sum((value - mean) ** 2 for value in values) / (count - 1) if count > 1 else 0.0
    if spread:
        size = max(size, mean * (1 - mean) / (spread / count))
    return wilson(min(1.0, max(0.0, mean)), size)


def _alike(devices: Sequence[Pair]) -> list[Pair]:
    """Return DEVICES with all latencies on the same edges; what is on other ones is left out."""
    whole, _ = like(histogram for pair in devices for histogram in pair)
    if whole is None:
        return []
    edges = whole["edges"]

    def fitted(histogram: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if not histogram or not set(edges) <= set(histogram["edges"]):
            return None
        return merged(histogram, {"edges": edges, "counts": [0] * (len(edges) + 1)})

    return [(fitted(a), fitted(b)) for a, b in devices]


def _layers(devices: Sequence[Pair]) -> list[list[Pair]]:
    """Return DEVICES apart: those that ran both, only A, only B. Each is drawn for itself."""
    found: dict[tuple[bool, bool], list[Pair]] = {}
    for pair in devices:
        if pair[0] or pair[1]:
            found.setdefault((bool(pair[0]), bool(pair[1])), []).append(pair)
    return list(found.values())


def _blocks(layer: list[Pair], dice: random.Random) -> list[Pair]:
    if len(layer) <= BLOCKS:
        return layer
    mixed = dice.sample(layer, len(layer))
    return [
        tuple(like(pair[side] for pair in mixed[n::BLOCKS])[0] for side in (0, 1))  # type: ignore[misc]
        for n in range(BLOCKS)
    ]


def _ratio(pairs: Sequence[Pair], share: float) -> float | None:
    found = [quantile(_sum([pair[side] for pair in pairs]), share) for side in (0, 1)]
    if found[0] is None or found[1] is None or found[0].value <= 0:
        return None
    return found[1].value / found[0].value


def _sum(histograms: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    known = [histogram for histogram in histograms if histogram]
    if not known:
        return None
    counts = [sum(column) for column in zip(*(h["counts"] for h in known), strict=True)]
    return {"edges": known[0]["edges"], "counts": counts}
