"""From the outputs of a detector to objects in the picture. Pure numpy; runs no model.

Scores are filtered first, so that boxes are worked on for the few that matter; the best of them
go through non-maximum suppression; what is left is brought back to the picture's pixels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgepack.decoders import Detector, Ssd, Yolo
from edgepack.manifest import Manifest
from edgepack_targets.pipeline.answer import Detection, Detections, label_of
from edgepack_targets.pipeline.geometry import Placement
from edgepack_targets.pipeline.outputs import (
    LIMIT,
    Array,
    Outputs,
    activated,
    bad_output,
    finite,
    unbatched,
)

__all__ = ["MAX_CANDIDATES", "detect", "iou", "suppress"]

MAX_CANDIDATES = 1000
"""Boxes that go into the suppression, the surest first: it ends in bounded time on any output."""
MAX_CLASS = 1 << 20

Floats = NDArray[np.float64]


class Found(NamedTuple):
    """Candidates, row by row: box as the model gives it, score, class."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def take(self, rows: NDArray[np.intp]) -> "Found":
        """Return the candidates ROWS."""
        return Found(self.boxes[rows], self.scores[rows], self.classes[rows])


def detect(manifest: Manifest, rule: Detector, outputs: Outputs, placed: Placement) -> Detections:
    """Return the objects in OUTPUTS, the surest first.

    Args:
        manifest: Has the labels.
        rule: How boxes and scores stand in the outputs.
        outputs: Of one picture, by public name.
        placed: Where that picture lies in the model's input.

    Raises:
        UsageError: an output is missing, has another shape, or holds NaN or infinity where an
            object is.
    """
    found = _yolo(rule, outputs) if isinstance(rule, Yolo) else _ssd(rule, outputs)
    best = np.argsort(-found.scores, kind="stable")[:MAX_CANDIDATES]
    found = found.take(best)
    corners = _corners(found.boxes, rule, placed)
    kept = _kept(corners, found, rule)
    boxes = _on_picture(corners[kept], placed)
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    found, boxes = found.take(kept[visible]), boxes[visible]
    return Detections(
        tuple(
            Detection(index, label_of(manifest.labels, index), score, (x0, y0, x1, y1))
            for index, score, (x0, y0, x1, y1) in zip(
                found.classes.tolist(), found.scores.tolist(), boxes.tolist(), strict=True
            )
        )
    )


# -- reading the outputs


def _ssd(rule: Detector, outputs: Outputs) -> Found:
    assert isinstance(rule, Ssd)
    boxes = unbatched(outputs, rule.boxes, 2)
    if rule.classes:
        scores, classes = _given_classes(rule, outputs)
    else:
        scores, classes = _best_classes(rule, outputs)
    if boxes.shape != (len(scores), 4) or len(classes) != len(scores):
        raise bad_output(
            f"the boxes in `{rule.boxes}` cannot be decoded",
            f"their shape is {list(boxes.shape)}, beside {len(scores)} scores "
            f"and {len(classes)} classes",
        )
    wanted = scores >= rule.score_threshold
    wanted[_count(rule, outputs, len(scores)) :] = False
    if rule.background is not None:
        wanted &= classes != rule.background
    rows = np.flatnonzero(wanted)
    return Found(
        _coordinates(rule.boxes, boxes[rows]), scores[rows], _indices(rule.classes, classes[rows])
    )


def _given_classes(rule: Ssd, outputs: Outputs) -> tuple[Floats, Array]:
    scores = finite(rule.scores, unbatched(outputs, rule.scores, 1))
    kind = "none" if rule.activation == "softmax" else rule.activation
    return activated(scores, kind), unbatched(outputs, rule.classes, 1)


def _best_classes(rule: Ssd, outputs: Outputs) -> tuple[Floats, Array]:
    """Return the score and the class that is best for each box, the background left out."""
    raw = finite(rule.scores, unbatched(outputs, rule.scores, 2))
    if not raw.shape[1]:
        raise bad_output(f"output `{rule.scores}` cannot be decoded", "it has no classes")
    scores = activated(raw, rule.activation)
    if rule.background is not None and rule.background < scores.shape[1]:
        scores = scores.copy()
        scores[:, rule.background] = -np.inf
    classes = scores.argmax(axis=1)
    return scores[np.arange(len(scores)), classes], classes


def _count(rule: Ssd, outputs: Outputs, most: int) -> int:
    if not rule.count:
        return most
    said = finite(rule.count, unbatched(outputs, rule.count, 0, 1)).reshape(-1)
    if said.size != 1:
        raise bad_output(f"output `{rule.count}` is no count", f"it holds {said.size} numbers")
    return int(np.clip(said[0], 0, most))


def _yolo(rule: Yolo, outputs: Outputs) -> Found:
    table = unbatched(outputs, rule.output, 2)
    # Rows are the channels, whichever way the model has them.
    rows = table if rule.channels == "first" else table.T
    first = 5 if rule.objectness else 4
    if len(rows) <= first:
        raise bad_output(
            f"output `{rule.output}` cannot be decoded",
            f"it has {len(rows)} channels, and the box alone takes {first}",
        )
    scores = finite(rule.output, rows[first:])
    best = _activated(scores.max(axis=0), rule)
    if rule.objectness:
        best = best * _activated(finite(rule.output, rows[4]), rule)
    wanted = np.flatnonzero(best >= rule.score_threshold)
    boxes = _coordinates(rule.output, rows[:4, wanted].T)
    return Found(boxes, best[wanted], scores[:, wanted].argmax(axis=0))


def _activated(scores: Array, rule: Yolo) -> Floats:
    return activated(scores, rule.activation)


def _coordinates(name: str, boxes: Array) -> Floats:
    return np.clip(finite(name, boxes).astype(np.float64), -LIMIT, LIMIT)


def _indices(name: str, classes: Array) -> NDArray[np.int64]:
    whole = np.rint(finite(name, classes))
    if whole.size and not (whole.min() >= 0 and whole.max() <= MAX_CLASS):
        raise bad_output(
            f"output `{name}` cannot be decoded", f"{whole.min():g}..{whole.max():g} is no class"
        )
    return whole.astype(np.int64)


# -- boxes


def _corners(boxes: Floats, rule: Detector, placed: Placement) -> Floats:
    """Return BOXES as left, top, right, bottom in pixels of the model's input."""
    if rule.box_format == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    elif rule.box_format == "xywh":
        boxes = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    elif rule.box_format == "cxcywh":
        half = boxes[:, 2:] / 2
        boxes = np.hstack([boxes[:, :2] - half, boxes[:, :2] + half])
    if rule.box_space == "normalised":
        boxes = boxes * np.array(placed.canvas * 2, np.float64)
    return boxes


def _kept(corners: Floats, found: Found, rule: Detector) -> NDArray[np.intp]:
    """Return the rows that stay; they are sorted by score."""
    if rule.nms_iou is None:
        return np.arange(min(len(corners), rule.max_detections))
    classes = np.zeros_like(found.classes) if rule.class_agnostic else found.classes
    return suppress(corners, classes, rule.nms_iou, rule.max_detections)


def suppress(
    boxes: Floats, classes: NDArray[np.int64], limit: float, most: int
) -> NDArray[np.intp]:
    """Return the rows of BOXES that greedy non-maximum suppression keeps, in their order.

    Args:
        boxes: (N, 4), two corners, the best first.
        classes: (N,); only boxes of one class take each other's place.
        limit: IoU with a better box above which a box goes.
        most: Rows at most.
    """
    left = np.arange(len(boxes))
    kept: list[int] = []
    while left.size and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        near = iou(boxes[best : best + 1], boxes[left])[0] > limit
        left = left[~(near & (classes[left] == classes[best]))]
    return np.array(kept, np.intp)


def iou(one: Floats, other: Floats) -> Floats:
    """Return how far each box of ONE covers each of OTHER: (N, M), intersection over union.

    Boxes are two corners; one without an area covers nothing.
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    union = _areas(one)[:, None] + _areas(other)[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))


def _on_picture(corners: Floats, placed: Placement) -> Floats:
    """Return CORNERS in pixels of the picture, cut at its edges."""
    points = placed.backward(corners.reshape(-1, 2, 2))
    edges = np.array(placed.picture, np.float64)
    return np.asarray(np.clip(points, 0.0, edges).reshape(-1, 4), np.float64)
