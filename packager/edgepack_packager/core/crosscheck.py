"""Whether all variants of a build answer alike on the same samples, pair by pair. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from numpy.typing import NDArray

from edgepack_packager.core.proof import Parity, compare
from edgepack_packager.core.recipe import Variant
from edgepack_targets.pipeline.similarity import top1

__all__ = ["Crossed", "crossed", "crossed_rows"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Crossed:
    """Two variants side by side; DIFFERENT counts other decisions, None where none are made."""

    one: Variant
    other: Variant
    parity: Parity
    samples: int
    different: int | None = None

    @property
    def agreement(self) -> float | None:
        """Share of samples on which both decide alike."""
        return None if self.different is None else 1 - self.different / self.samples


def crossed(answers: Mapping[Variant, Arrays], decided: str | None) -> list[Crossed]:
    """Return every pair of variants, the least alike first.

    Args:
        answers: Of every variant to the same samples, by public output name.
        decided: The output that a classifier's decision is read from; None: no classifier.
    """
    pairs = [_pair(one, other, answers, decided) for one, other in combinations(answers, 2)]
    return sorted(pairs, key=lambda pair: (-(pair.different or 0), pair.parity.cosine))


def _pair(
    one: Variant, other: Variant, answers: Mapping[Variant, Arrays], decided: str | None
) -> Crossed:
    left, right = answers[one], answers[other]
    count = len(next(iter(left.values())))
    different = int((top1(left[decided]) != top1(right[decided])).sum()) if decided else None
    return Crossed(one, other, compare(left, right), count, different)


def crossed_rows(pairs: Iterable[Crossed]) -> list[dict[str, Any]]:
    """Return PAIRS for a report."""
    return [
        {
            "variants": [str(pair.one), str(pair.other)],
            "max_abs": pair.parity.max_abs,
            "cosine": pair.parity.cosine,
            "samples": pair.samples,
            "different": pair.different,
            "agreement": pair.agreement,
        }
        for pair in pairs
    ]
