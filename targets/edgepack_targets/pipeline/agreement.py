"""Whether two sets of outputs stand for the same decisions. Pure; runs no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack.manifest import Manifest
from edgepack_targets.pipeline.answer import (
    UNSEEN,
    Answer,
    Classification,
    Detections,
    Embedding,
    Raw,
    Segmentation,
)
from edgepack_targets.pipeline.detect import iou
from edgepack_targets.pipeline.postprocess import decode
from edgepack_targets.pipeline.similarity import cosine, top1

__all__ = [
    "Verdict",
    "agree",
    "alike",
    "f1",
    "frame_agreement",
    "miou",
]

Array = NDArray[Any]
MIN_IOU = 0.5
"""How far two boxes must cover each other to be one object."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far two sets of outputs agree, under one rule."""

    share: float
    """Share of samples with the same decision, 0..1."""
    cosine: float
    """Cosine similarity of the sample that differs most, -1..1; for `f1` and `miou` its share."""
    passed: bool


def agree(manifest: Manifest, expected: Mapping[str, Array], got: Mapping[str, Array]) -> Verdict:
    """Compare GOT with EXPECTED by the rule of MANIFEST; first axis = samples.

    Rule `top1`: the same highest entry; rule `cosine`: a cosine of at least `min_cosine`.
    Passed if enough samples agree and none is further away than `min_cosine`; an answer with
    NaN or infinity agrees with nothing. Rules `f1` and `miou` compare decoded answers, and the
    mean over the samples decides.

    Args:
        manifest: Says the rule, and how outputs are decoded.
        expected: By public output name.
        got: By public output name.

    Raises:
        UsageError: An output is missing, or has another shape, or there are no samples.
    """
    rule = manifest.agreement
    if rule.rule in {"f1", "miou"}:
        return _agree_decoded(manifest, expected, got)
    left, right = _rows(rule.output, expected, got)
    finite = np.asarray(np.isfinite(np.hstack([left, right])).all(axis=1))
    angles = np.full(len(left), -1.0)
    if finite.any():
        angles[finite] = cosine(left[finite], right[finite])
    same = top1(left) == top1(right) if rule.rule == "top1" else angles >= rule.min_cosine
    share = float((same & finite).mean())
    lowest = float(angles.min())
    return Verdict(share, lowest, share >= rule.min_share and lowest >= rule.min_cosine)


def _agree_decoded(
    manifest: Manifest, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> Verdict:
    count = _count(manifest, expected, got)
    shares = [
        frame_agreement(manifest, _one(expected, index), _one(got, index)) for index in range(count)
    ]
    share = float(np.mean(shares))
    return Verdict(share, min(shares), share >= manifest.agreement.min_share)


def frame_agreement(
    manifest: Manifest,
    left: Mapping[str, Array],
    right: Mapping[str, Array],
    other: Manifest | None = None,
) -> float:
    """Return how far two sets of outputs for ONE picture stand for the same answer, 0..1.

    See `alike`; 1 is the same decision. What cannot be decoded agrees with nothing: 0.

    Args:
        manifest: How LEFT is decoded, and how raw outputs are compared.
        left: Outputs by public name.
        right: Outputs by public name.
        other: How RIGHT is decoded, where it comes from another version of the model.
    """
    try:
        return alike(decode(manifest, left), decode(other or manifest, right))
    except UsageError:
        return 0.0


def alike(left: Answer, right: Answer) -> float:
    """Return how far two answers to one picture agree, 0..1; where both see nothing, fully.

    The same best label; the F1 of the objects; the mean IoU of the regions; the cosine of
    vectors, and of all raw outputs together. Classes are compared by label, so that the answers
    may come from two versions of a model. Answers of different kinds do not agree.
    """
    if isinstance(left, Classification) and isinstance(right, Classification):
        return float(left.guesses[0].label == right.guesses[0].label)
    if isinstance(left, Detections) and isinstance(right, Detections):
        return f1(left, right)
    if isinstance(left, Segmentation) and isinstance(right, Segmentation):
        return miou(left, right)
    if isinstance(left, Embedding) and isinstance(right, Embedding):
        return _direction(left.vector, right.vector)
    if isinstance(left, Raw) and isinstance(right, Raw):
        return _raw(left, right)
    return 0.0


def f1(left: Detections, right: Detections, min_iou: float = MIN_IOU) -> float:
    """Return the F1 of two sets of objects, 0..1; 1 if there are none on either side.

    Objects of one label are paired greedily, the best covered first, at an IoU of MIN_IOU or
    more; each is in one pair at most.
    """
    total = len(left.objects) + len(right.objects)
    if not total:
        return 1.0
    labels = {found.label for found in left.objects} & {found.label for found in right.objects}
    pairs = sum(_pairs(_boxes(left, one), _boxes(right, one), min_iou) for one in labels)
    return 2 * pairs / total


def _boxes(answer: Detections, label: str) -> NDArray[np.float64]:
    rows = [found.box for found in answer.objects if found.label == label]
    return np.array(rows, np.float64)


def _pairs(left: NDArray[np.float64], right: NDArray[np.float64], min_iou: float) -> int:
    """Return how many of the boxes are the same."""
    cover = iou(left, right)
    rows, columns = np.nonzero(cover >= min_iou)
    order = np.argsort(-cover[rows, columns], kind="stable")
    taken: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
    return len(taken[0])


def miou(left: Segmentation, right: Segmentation) -> float:
    """Return the mean IoU over the classes that either side has, 0..1.

    Pixels that neither model saw are left out.
    """
    if left.classes.shape != right.classes.shape:
        return 0.0
    ours, theirs = _relabelled(left, right)
    seen = (ours != UNSEEN) | (theirs != UNSEEN)
    ours, theirs = ours[seen], theirs[seen]
    classes = np.union1d(ours, theirs)
    classes = classes[classes != UNSEEN]
    shares = [
        ((ours == one) & (theirs == one)).sum() / ((ours == one) | (theirs == one)).sum()
        for one in classes
    ]
    return float(np.mean(shares)) if shares else 1.0


def _relabelled(
    left: Segmentation, right: Segmentation
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return both class maps flat, with one number for one label; `UNSEEN` stays."""
    numbers: dict[str, int] = {}
    maps = []
    for side in (left, right):
        indices, places = np.unique(side.classes, return_inverse=True)
        table = [
            UNSEEN if index == UNSEEN else numbers.setdefault(side.label(index), len(numbers))
            for index in indices.tolist()
        ]
        maps.append(np.array(table, np.intp)[places.ravel()])
    return maps[0], maps[1]


def _direction(left: Array, right: Array) -> float:
    if left.shape != right.shape:
        return 0.0
    return max(0.0, float(cosine(left.reshape(1, -1), right.reshape(1, -1))[0]))


def _raw(left: Raw, right: Raw) -> float:
    """Return the cosine of the output that differs most."""
    if left.outputs.keys() != right.outputs.keys():
        return 0.0
    pairs = [(array, right.outputs[name]) for name, array in left.outputs.items()]
    if not all(np.isfinite(side).all() for pair in pairs for side in pair):
        return 0.0
    return min((_direction(ours, theirs) for ours, theirs in pairs), default=1.0)


def _count(manifest: Manifest, expected: Mapping[str, Array], got: Mapping[str, Array]) -> int:
    """Return how many samples there are on both sides.

    Raises:
        UsageError: an output is missing, or the sides have not as many samples.
    """
    names = [spec.name for spec in manifest.outputs]
    for name in names:
        if name not in expected or name not in got:
            raise UsageError(f"there is no output `{name}` to compare", reason="bad_output")
    counts = {len(side[name]) for side in (expected, got) for name in names}
    if len(counts) != 1 or counts == {0}:
        raise UsageError(
            "the outputs cannot be compared",
            why=f"they hold {sorted(counts)} samples",
            reason="bad_output",
        )
    return counts.pop()


def _one(outputs: Mapping[str, Array], index: int) -> dict[str, Array]:
    return {name: array[index : index + 1] for name, array in outputs.items()}


def _rows(
    name: str, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if name not in expected or name not in got:
        raise UsageError(f"there is no output `{name}` to compare", reason="bad_output")
    left, right = expected[name], got[name]
    if left.shape != right.shape or not left.size:
        raise UsageError(
            f"`{name}` cannot be compared",
            why=f"one has the shape {left.shape}, the other {right.shape}",
            reason="bad_output",
        )
    flat = (len(left), -1)
    return left.reshape(flat).astype(np.float64), right.reshape(flat).astype(np.float64)
