"""Counts of weights by how they are stored: what `Applied` says of them. Knows no format."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stored", "Tally", "int4_values", "tally"]


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight of a model."""

    kind: Literal["float", "float16", "int8", "int4"]
    count: int
    zeros: int


class Tally(TypedDict):
    """The part of `Applied` that is about weights."""

    int8_weights: int
    float_weights: int
    int8_share: float
    float16_weights: int
    int4_weights: int
    sparsity: float


def tally(weights: Iterable[Stored]) -> Tally:
    """Return the sums over WEIGHTS; shares are 0 without weights."""
    known = list(weights)
    counts = {
        kind: sum(weight.count for weight in known if weight.kind == kind)
        for kind in ("float", "float16", "int8", "int4")
    }
    total = sum(counts.values()) or 1
    return Tally(
        int8_weights=counts["int8"],
        float_weights=counts["float"] + counts["float16"],
        int8_share=counts["int8"] / total,
        float16_weights=counts["float16"],
        int4_weights=counts["int4"],
        sparsity=sum(weight.zeros for weight in known) / total,
    )


def int4_values(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return the COUNT unsigned 4-bit values in PACKED, the low half of a byte first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return np.asarray(halves.reshape(-1)[:count])
