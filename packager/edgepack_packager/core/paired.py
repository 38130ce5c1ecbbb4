"""What paired counts say: a sentence for a person, and how odd so uneven a split is. Pure."""

import math

from edgepack_packager.core.documents import PairedFacts
from edgepack_packager.core.holdout import Paired

__all__ = ["p_value", "paired_facts", "paired_sentence"]


def p_value(pair: Paired) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Of the samples that only one of the two gets right, the probability of a split at least as
    uneven if both were equally good.
    """
    changed, fewer = pair.lost + pair.gained, min(pair.lost, pair.gained)
    tail: float = sum(math.comb(changed, k) for k in range(fewer + 1)) / 2**changed
    return min(1.0, 2 * tail)


def paired_sentence(pair: Paired, what: str, noun: str = "samples") -> str:
    """Return PAIR as a sentence: `int8 costs 1 of 540 samples (2 lost, 1 gained)`."""
    if not pair.lost and not pair.gained:
        return f"{what} changes none of {pair.samples} {noun}"
    cost = pair.lost - pair.gained
    verb = "costs" if cost >= 0 else "gains"
    net = abs(cost) or "none"
    return f"{what} {verb} {net} of {pair.samples} {noun} ({pair.lost} lost, {pair.gained} gained)"


def paired_facts(pair: Paired | None) -> PairedFacts | None:
    """Return PAIR for a document; None stays None."""
    if pair is None:
        return None
    return {
        "samples": pair.samples,
        "lost": pair.lost,
        "gained": pair.gained,
        "interval95": list(pair.interval),
        "p_value": p_value(pair),
    }
