"""The part of a frame that is looked at: a region, without what is masked. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["framed"]

Polygon = Sequence[tuple[float, float]]


def framed(
    frame: NDArray[Any], roi: tuple[float, float, float, float] | None, mask: Sequence[Polygon]
) -> NDArray[Any]:
    """Return FRAME (height, width, 3) cut to ROI, with the polygons of MASK black.

    Both are in shares of the whole frame. At least one pixel is left.
    """
    height, width = frame.shape[:2]
    if mask:
        frame = np.where(_covered(mask, width, height)[:, :, None], np.uint8(0), frame)
    if roi is None:
        return frame
    left, top = min(int(roi[0] * width), width - 1), min(int(roi[1] * height), height - 1)
    right, bottom = max(left + 1, round(roi[2] * width)), max(top + 1, round(roi[3] * height))
    return np.ascontiguousarray(frame[top:bottom, left:right])


def _covered(mask: Sequence[Polygon], width: int, height: int) -> NDArray[np.bool_]:
    plane = Image.new("1", (width, height))
    pen = ImageDraw.Draw(plane)
    for polygon in mask:
        pen.polygon([(x * width, y * height) for x, y in polygon], fill=1)
    return np.asarray(plane)
