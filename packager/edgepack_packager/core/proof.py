"""How near an artefact is to its source, and whether that is near enough. Pure numbers.

Parity compares answers of the device's runtime with answers of the source framework. Golden
tolerance and gates follow from it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import AccuracyError
from edgepack_targets.pipeline.similarity import cosine

__all__ = [
    "Measured",
    "Parity",
    "check_baseline",
    "check_drop",
    "check_export",
    "compare",
    "golden_cosine",
    "golden_picks",
    "resolution_warning",
]

Arrays = Mapping[str, NDArray[Any]]
EXPORT_COSINE, EXPORT_ERROR = 0.9999, 1e-3
INTEGER_COSINE, INTEGER_ERROR = 0.999, 3e-2
ROUNDING = 1e-9
"""Cosine distance that fp32 rounding alone explains between two classes of CPU."""
LOOSEST = 0.01
GOLDEN_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute difference, and the lowest cosine of any output of any sample."""

    max_abs: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What an artefact costs here: milliseconds at p50 and p95, bytes, megabytes (10^6)."""

    p50: float
    p95: float
    model_bytes: int
    peak_rss_mb: float


def compare(reference: Arrays, this: Arrays) -> Parity:
    """Return the parity of THIS with REFERENCE: same names, first axis = samples."""
    worst = max(_max_abs(reference[name], this[name]) for name in reference)
    lowest = min(float(cosine(reference[name], this[name]).min()) for name in reference)
    return Parity(worst, lowest)


def _rows(array: NDArray[Any]) -> NDArray[np.float64]:
    return array.reshape(len(array), -1).astype(np.float64)


def _max_abs(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(_rows(a) - _rows(b)).max(initial=0.0))


def check_export(parity: Parity, largest: float, target: str, *, precision: str = "fp32") -> None:
    """Check that an artefact whose precision was not lowered answers as its source does.

    Args:
        parity: Of the fp32 artefact in the device's runtime.
        largest: Largest absolute answer of the source: the scale of `max_abs`.
        target: For the message.
        precision: Of the source. Two runtimes round one integer model differently, by a step.

    Raises:
        AccuracyError: it does not, so there is no baseline to judge anything by.
    """
    integer = precision == "int8"
    error, cosine = (INTEGER_ERROR, INTEGER_COSINE) if integer else (EXPORT_ERROR, EXPORT_COSINE)
    near = parity.max_abs <= error * max(1.0, largest) and parity.cosine >= cosine
    if not (near and math.isfinite(parity.max_abs)):
        raise AccuracyError(
            f"the {precision} model for {target} does not answer as its source does",
            why=f"largest difference {parity.max_abs:.3g}, lowest cosine {parity.cosine:.6f}",
            fix="the conversion is wrong for this model; leave this target out",
            reason="export_differs",
        )


def check_baseline(score: float, labels: NDArray[Any], classes: int) -> None:
    """Check that a top-1 SCORE is better than guessing among CLASSES.

    Raises:
        AccuracyError: it is within what chance alone gives (three standard deviations).
    """
    _, counts = np.unique(labels, return_counts=True)
    chance = max(1 / classes, float(counts.max()) / len(labels))
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / len(labels))
    if limit >= 1 and chance < 1:
        raise AccuracyError(
            f"{len(labels)} samples are too few to tell the source model from guessing",
            why=f"guessing gives {chance:.4f}, and on so few samples anything up to 1 by luck",
            fix="give more samples to evaluate, of several classes",
            reason="baseline_near_chance",
        )
    # One class only: any constant answer scores 1, and nothing can be told.
    if score <= min(limit, 1.0) and (chance < 1 or score < 1):
        raise AccuracyError(
            f"the source model scores {score:.4f}, about what guessing gives ({chance:.4f})",
            why="a proof against such a baseline would prove nothing",
            fix="check the model, the labels and how the samples were preprocessed",
            reason="baseline_near_chance",
        )


def check_drop(reference: float, this: float, limit: float | None) -> None:
    """Check that the metric fell by no more than LIMIT (absolute, in metric units).

    Raises:
        AccuracyError: it fell by more.
    """
    drop = reference - this
    # Metrics are floats: 0.98 - 0.97 must not fail a limit of 0.01.
    if limit is not None and drop > limit + 1e-9:
        raise AccuracyError(
            f"the metric fell by {drop:.4f}, more than the {limit:g} allowed",
            why=f"source {reference:.4f}, this artefact {this:.4f}",
            fix="more or better calibration data, another precision, or a higher --max-drop",
            reason="max_drop",
        )


def resolution_warning(limit: float | None, samples: int) -> str | None:
    """Return a warning if one sample changes the metric by more than LIMIT."""
    if limit is None or limit <= 0 or 1 / samples <= limit:
        return None
    return (
        f"--max-drop {limit:g} is finer than {samples} samples can tell "
        f"(one sample is {1 / samples:.4f})"
    )


def golden_cosine(distance: float) -> float:
    """Return the lowest cosine at which a device still reproduces the host's answers.

    Args:
        distance: 1 - cosine of the artefact to its source. The tolerance is half of it, so that
            the source itself would not pass for the artefact; never tighter than rounding.
    """
    return 1.0 - min(LOOSEST, max(distance / 2, ROUNDING))


def golden_picks(count: int) -> list[int]:
    """Return the indices of the golden samples among COUNT, evenly spread."""
    picked = min(count, GOLDEN_SAMPLES)
    return [index * count // picked for index in range(picked)]
