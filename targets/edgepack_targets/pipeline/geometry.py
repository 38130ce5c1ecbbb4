"""Where the pixels of a picture lie in the model's input, and back. Pure; moves no pixel."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack.manifest import Resize

__all__ = ["Placement", "place"]

Size = tuple[int, int]
Floats = NDArray[np.floating[Any]]

MAX_PIXELS = 64 << 20
"""Of an image that is enlarged before it is cut."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A picture of `picture` (width, height), brought to `inner` and laid at `offset`.

    What hangs over the canvas is cut, what it does not cover is padding.
    """

    picture: Size
    canvas: Size
    inner: Size
    offset: tuple[int, int]
    """Left and top of the inner picture on the canvas; negative: so much is cut."""

    def forward(self, points: Floats) -> Floats:
        """Return POINTS (..., 2) of the picture, x and y in pixels, on the canvas."""
        return points * self._factor + np.array(self.offset, np.float64)

    def backward(self, points: Floats) -> Floats:
        """Return POINTS (..., 2) of the canvas, x and y in pixels, on the picture."""
        return (points - np.array(self.offset, np.float64)) / self._factor

    @property
    def _factor(self) -> NDArray[np.float64]:
        return np.array(self.inner, np.float64) / np.array(self.picture, np.float64)


def place(rule: Resize, picture: Size, canvas: Size) -> Placement:
    """Return where a PICTURE lies on a CANVAS, both (width, height), by RULE.

    Raises:
        UsageError: the picture is too long and thin to be cut.
    """
    if rule.mode == "stretch":
        return Placement(picture, canvas, canvas, (0, 0))
    ratios = [whole / part for whole, part in zip(canvas, picture, strict=True)]
    if rule.mode == "letterbox":
        inner = _scaled(picture, min(ratios), canvas, min)
        offset = ((canvas[0] - inner[0]) // 2, (canvas[1] - inner[1]) // 2)
    else:
        inner = _scaled(picture, max(ratios), canvas, max)
        _check_size(picture, canvas, inner)
        offset = (-((inner[0] - canvas[0]) // 2), -((inner[1] - canvas[1]) // 2))
    return Placement(picture, canvas, inner, offset)


def _scaled(picture: Size, factor: float, canvas: Size, bound: Callable[[int, int], int]) -> Size:
    """Return PICTURE times FACTOR, whole pixels, bounded by CANVAS."""
    return (
        max(1, bound(canvas[0], round(picture[0] * factor))),
        max(1, bound(canvas[1], round(picture[1] * factor))),
    )


def _check_size(picture: Size, canvas: Size, inner: Size) -> None:
    if math.prod(inner) > MAX_PIXELS:
        # A line of one pixel's width is a small file, but fills the memory when it is enlarged.
        raise UsageError(
            f"an image of {picture[0]} x {picture[1]} pixels is too long and thin to be cut",
            why=f"to fill {canvas[0]} x {canvas[1]} it would have to become "
            f"{inner[0]} x {inner[1]}",
            reason="bad_image",
        )
