"""What inputs and answers looked like when the model was proven: histograms for `manifest.drift`.

A device counts the same things between the same edges; counts merge by addition, so no single
value ever has to leave it, and what was seen can be compared with what was expected.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.decoders import Detector, Mask, Softmax
from edgepack.manifest import Manifest
from edgepack_targets.pipeline.postprocess import decode
from edgepack_targets.pipeline.sharpness import sharpness

__all__ = ["CONFIDENCE_EDGES", "drift_baseline", "histogram", "merge"]

Arrays = Mapping[str, NDArray[Any]]
Histogram = dict[str, list[Any]]
CONFIDENCE_EDGES = tuple(i / 20 for i in range(1, 20))
"""The edges that the agent counts confidences between."""
COUNTED = (Softmax, Detector, Mask)
"""Decoders whose answers have classes."""
BINS = 20
STEPS = (1, 2, 5, 10)


def drift_baseline(
    manifest: Manifest, samples: Arrays, answers: Arrays, *, digest: str
) -> dict[str, Any]:
    """Return the baseline of an artefact.

    `inputs`: by public name, histograms of the `mean` and the `spread` (standard deviation) of
    each sample, and of a picture its `sharpness`. For a classifier `classes` (count by label) and
    `confidence` of the first guess, for a detector of every object, for a segmenting model of every
    region; for other models `outputs`, as `inputs`. `samples` is how many; `dataset_digest` says
    which.

    Args:
        manifest: Of the artefact; says how answers are read.
        samples: Inputs by public name, first axis = samples.
        answers: What the artefact answers to them in the device's runtime.
        digest: Of the samples.
    """
    count = len(next(iter(answers.values())))
    told: dict[str, Any] = {
        "samples": count,
        "dataset_digest": digest,
        "inputs": {n: _moments(array) | _sharp(array) for n, array in sorted(samples.items())},
    }
    if not isinstance(manifest.postprocess, COUNTED):
        return told | {"outputs": {n: _moments(array) for n, array in sorted(answers.items())}}
    rows = ({n: array[i : i + 1] for n, array in answers.items()} for i in range(count))
    found = [pair for row in rows for pair in decode(manifest, row).top()]
    return told | {
        "classes": dict(sorted(Counter(label for label, _ in found).items())),
        "confidence": histogram([confidence for _, confidence in found], CONFIDENCE_EDGES),
    }


def _moments(array: NDArray[Any]) -> dict[str, Histogram]:
    rows = array.reshape(len(array), -1).astype(np.float64)
    values = {"mean": rows.mean(axis=1), "spread": rows.std(axis=1)}
    return {name: histogram(of.tolist(), _edges(of)) for name, of in values.items()}


def _sharp(array: NDArray[Any]) -> dict[str, Histogram]:
    found = [sharpness(sample) for sample in array]
    known = np.array([value for value in found if value is not None])
    if len(known) < len(found) or not np.isfinite(known).all():
        return {}
    return {"sharpness": histogram(known.tolist(), _edges(known))}


def _edges(values: NDArray[np.float64]) -> list[float]:
    """Return round edges around VALUES: about 20 steps of 1, 2 or 5 times a power of ten.

    Values a little different give the same edges, so that two versions of a model mostly have
    histograms that can be compared.
    """
    low, high = float(values.min()), float(values.max())
    width = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(width / BINS))
    step = next(unit * power for unit in STEPS if unit * power * BINS >= width)
    first, last = math.floor(low / step), math.ceil(high / step)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def histogram(values: Sequence[float], edges: Sequence[float]) -> Histogram:
    """Return how many of VALUES lie between EDGES: one count more than edges, the ends are open.

    A value that equals an edge is counted above it, as the agent does.
    """
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_right(edges, value)] += 1
    return {"edges": list(edges), "counts": counts}


def merge(one: Histogram, other: Histogram) -> Histogram:
    """Return both histograms as one.

    Raises:
        ValueError: they have different edges.
    """
    if one["edges"] != other["edges"]:
        raise ValueError("histograms with different edges cannot be added")
    counts = [a + b for a, b in zip(one["counts"], other["counts"], strict=True)]
    return {"edges": one["edges"], "counts": counts}
