"""From the output of a segmenting model to a class for every pixel of the picture. Pure numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.decoders import Mask
from edgepack.manifest import Manifest
from edgepack_targets.pipeline.answer import UNSEEN, Segmentation
from edgepack_targets.pipeline.geometry import Placement
from edgepack_targets.pipeline.outputs import (
    Array,
    Outputs,
    activated,
    bad_output,
    finite,
    unbatched,
)

__all__ = ["class_map", "segment"]

MAX_CLASS = 1 << 20


def segment(
    manifest: Manifest, rule: Mask, outputs: Outputs, placed: Placement | None
) -> Segmentation:
    """Return the class of every pixel, nearest neighbours where sizes differ.

    Args:
        manifest: Has the labels.
        rule: How the classes stand in the output.
        outputs: Of one picture, by public name.
        placed: Where that picture lies in the model's input; None: the map in the model's size.

    Raises:
        UsageError: the output is missing, has another shape, or holds NaN or infinity.
    """
    classes = class_map(rule, outputs)
    if placed is not None:
        classes = _on_picture(classes, placed)
    return Segmentation(classes, manifest.labels)


def class_map(rule: Mask, outputs: Outputs) -> NDArray[np.int32]:
    """Return the class of every pixel (height, width) that the model gives."""
    array = finite(
        rule.output, unbatched(outputs, rule.output, 2 if rule.channels == "none" else 3)
    )
    if not array.size:
        raise bad_output(f"output `{rule.output}` cannot be decoded", "it is empty")
    if rule.channels == "none":
        return _flat(rule, array)
    planes = array if rule.channels == "first" else np.moveaxis(array, 2, 0)
    if len(planes) == 1:
        return _reached(rule, planes[0])
    return np.asarray(planes.argmax(axis=0), np.int32)


def _flat(rule: Mask, array: Array) -> NDArray[np.int32]:
    if array.dtype.kind == "f":
        return _reached(rule, array)
    if array.dtype.kind != "b" and not (array.min() >= 0 and array.max() <= MAX_CLASS):
        raise bad_output(
            f"output `{rule.output}` cannot be decoded",
            f"{array.min()}..{array.max()} are no classes",
        )
    return array.astype(np.int32)


def _reached(rule: Mask, scores: Array) -> NDArray[np.int32]:
    return (activated(scores, rule.activation) >= rule.threshold).astype(np.int32)


def _on_picture(classes: NDArray[np.int32], placed: Placement) -> NDArray[np.int32]:
    """Return CLASSES for each pixel of the picture: of the cell that its centre lies in."""
    columns, rows = (_cells(axis, classes.shape[1 - axis], placed) for axis in (0, 1))
    found = classes[np.clip(rows, 0, None)[:, None], np.clip(columns, 0, None)[None]]
    unseen = (rows < 0)[:, None] | (columns < 0)[None]
    return np.where(unseen, np.int32(UNSEEN), found)


def _cells(axis: int, count: int, placed: Placement) -> NDArray[Any]:
    """Return for each pixel along AXIS (0: x) the index of its cell among COUNT; -1: cut off."""
    centres = np.arange(placed.picture[axis]) + 0.5
    points = np.zeros((len(centres), 2))
    points[:, axis] = centres
    share = placed.forward(points)[:, axis] / placed.canvas[axis]
    cells = np.floor(share * count).astype(np.intp)
    return np.where((cells < 0) | (cells >= count), -1, cells)
