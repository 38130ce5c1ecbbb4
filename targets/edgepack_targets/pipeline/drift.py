"""Whether what a model sees and says has changed: two histograms, compared. Pure Python.

The population stability index is the measure that people know, but its fixed limits (0.1, 0.2)
fire on noise: without any drift it is about (bins - 1) * (1/n + 1/m) for samples of n and m. So
that much is taken off, few bins are used, and a likelihood-ratio test (G-test) says whether the
rest could be chance. A device has no numpy here and needs none.

Sources: Yurdakul, Statistical Properties of the Population Stability Index, 2018 (the bias);
Sokal and Rohlf, Biometry, chapter 17 (G); Press et al., Numerical Recipes, 6.2 (its distribution).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Finding", "chi_square_tail", "compare", "compare_classes", "in_bins"]

MAX_BINS = 10
MIN_EXPECTED = 5.0
"""Counts that a bin must be expected to have on either side, for the test to hold."""
MOST_STEPS = 500
_SMALL = 1e-300


@dataclass(frozen=True, slots=True)
class Finding:
    """How far a window is from the baseline, in one feature."""

    psi: float
    """Population stability index less what chance alone would give; 0 or more."""
    p: float
    """How probable a difference like this, or a larger one, is without any drift."""
    n: int
    """Values in the window."""


def compare(baseline: Sequence[int], window: Sequence[int]) -> Finding:
    """Compare two histograms with the same edges.

    Args:
        baseline: Counts, in the order of their edges.
        window: Counts of as many bins.

    Raises:
        ValueError: they have not the same number of bins.
    """
    if len(baseline) != len(window):
        raise ValueError(f"{len(baseline)} bins are compared with {len(window)}")
    return _judged(in_bins(list(zip(baseline, window, strict=True))), sum(window))


def compare_classes(baseline: Mapping[str, int], window: Mapping[str, int]) -> Finding:
    """Compare how often each class was decided for; rare ones count together."""
    known = baseline.keys() | window.keys()
    labels = sorted(known, key=lambda label: (-baseline.get(label, 0), label))
    pairs = [(baseline.get(label, 0), window.get(label, 0)) for label in labels]
    return _judged(in_bins(pairs), sum(window.values()))


def in_bins(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return PAIRS of counts with neighbours put together until each is worth a bin.

    At most `MAX_BINS`, each with `MIN_EXPECTED` expected counts on the smaller side.
    """
    n, m = (sum(side) for side in zip(*pairs, strict=True)) if pairs else (0, 0)
    if not n or not m:
        return []
    share = min(n, m) / (n + m)
    worth = max(MIN_EXPECTED / share, (n + m) / MAX_BINS)
    bins: list[tuple[int, int]] = []
    left, right = 0, 0
    for one, other in pairs:
        left, right = left + one, right + other
        if left + right >= worth:
            bins.append((left, right))
            left, right = 0, 0
    if (left or right) and bins:
        last = bins.pop()
        bins.append((last[0] + left, last[1] + right))
    return bins


def _judged(bins: list[tuple[int, int]], count: int) -> Finding:
    if len(bins) < 2:
        return Finding(0.0, 1.0, count)
    n, m = (sum(side) for side in zip(*bins, strict=True))
    # Half a count keeps an empty bin from being infinitely far away.
    shares = [
        ((a + 0.5) / (n + 0.5 * len(bins)), (b + 0.5) / (m + 0.5 * len(bins))) for a, b in bins
    ]
    raw = sum((q - p) * math.log(q / p) for p, q in shares)
    bias = (len(bins) - 1) * (1 / n + 1 / m)
    return Finding(max(0.0, raw - bias), chi_square_tail(_g(bins, n, m), len(bins) - 1), count)


def _g(bins: list[tuple[int, int]], n: int, m: int) -> float:
    """Return the likelihood ratio of BINS being drawn from one distribution."""
    total = 0.0
    for a, b in bins:
        for count, size in ((a, n), (b, m)):
            if count:
                total += count * math.log(count * (n + m) / (size * (a + b)))
    return max(0.0, 2 * total)


def chi_square_tail(x: float, degrees: int) -> float:
    """Return the probability that a chi-square of DEGREES degrees of freedom is X or more."""
    shape, half = degrees / 2, x / 2
    if half <= 0:
        return 1.0
    front = math.exp(-half + shape * math.log(half) - math.lgamma(shape))
    if half < shape + 1:
        return max(0.0, 1.0 - front * _series(shape, half))
    return min(1.0, front * _fraction(shape, half))


def _series(shape: float, x: float) -> float:
    term = total = 1 / shape
    for step in range(1, MOST_STEPS):
        term *= x / (shape + step)
        total += term
        if term < total * 1e-15:
            break
    return total


def _fraction(shape: float, x: float) -> float:
    """Return Legendre's continued fraction, by the modified Lentz method."""
    b = x + 1 - shape
    c, d = 1 / _SMALL, 1 / b
    result = d
    for step in range(1, MOST_STEPS):
        a = -step * (step - shape)
        b += 2
        d = 1 / (a * d + b or _SMALL)
        c = b + a / c or _SMALL
        result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return result
