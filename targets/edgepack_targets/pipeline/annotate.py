"""Draws an answer on the picture it is about. Pillow alone; decides nothing.

The host's `run --annotate`, the device's preview and its snapshots all come through here.
"""

import colorsys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgepack_targets.pipeline.answer import (
    UNSEEN,
    Answer,
    Classification,
    Detections,
    Segmentation,
)

__all__ = ["annotate", "color_of"]

Color = tuple[int, int, int]

TEXT: Color = (255, 255, 255)
MASK_SHARE = 0.5
"""How much of a region's colour covers the picture."""
GOLDEN_ANGLE = 0.618034
"""Hues this far apart stay distinct, however many classes there are."""


def annotate(image: Image.Image, answer: Answer) -> Image.Image:
    """Return a copy of IMAGE, RGB, with ANSWER drawn on it.

    Boxes and their labels, regions in colour with a legend, the best class. Vectors and raw
    tensors have nothing to draw.
    """
    drawn = image.convert("RGB")
    if isinstance(answer, Detections):
        _boxes(drawn, answer)
    elif isinstance(answer, Segmentation):
        drawn = _regions(drawn, answer)
    elif isinstance(answer, Classification):
        lines = [(f"{g.label} {g.score:.0%}", color_of(g.index)) for g in answer.guesses[:3]]
        _legend(drawn, lines)
    return drawn


def color_of(index: int) -> Color:
    """Return the colour of class INDEX: the same in every picture, unlike its neighbours'."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * GOLDEN_ANGLE) % 1.0, 0.78, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _boxes(image: Image.Image, answer: Detections) -> None:
    pen, font = ImageDraw.Draw(image), _font(image)
    width = max(2, round(min(image.size) / 160))
    # The surest last, on top.
    for found in reversed(answer.objects):
        color = color_of(found.index)
        pen.rectangle(found.box, outline=color, width=width)
        _tag(pen, (found.box[0], found.box[1]), f"{found.label} {found.score:.0%}", color, font)


def _regions(image: Image.Image, answer: Segmentation) -> Image.Image:
    """Colour each class but the first, which is the background, where there are several."""
    shares = answer.shares()
    shown = [index for index in shares if index > 0]
    table = np.zeros((max([*shares, 0]) + 1, 4), np.uint8)
    for index in shown:
        table[index] = (*color_of(index), round(255 * MASK_SHARE))
    seen = np.where(answer.classes == UNSEEN, 0, answer.classes)
    mask = Image.fromarray(table[seen])
    mask = mask if mask.size == image.size else mask.resize(image.size, Image.Resampling.NEAREST)
    drawn = Image.alpha_composite(image.convert("RGBA"), mask).convert("RGB")
    _legend(drawn, [(f"{answer.label(i)} {shares[i]:.0%}", color_of(i)) for i in shown[:8]])
    return drawn


def _legend(image: Image.Image, lines: list[tuple[str, Color]]) -> None:
    pen, font = ImageDraw.Draw(image), _font(image)
    left = max(2, round(min(image.size) / 60))
    top = float(left)
    for text, color in lines:
        top += _tag(pen, (left, top), text, color, font, below=True) + 2


def _tag(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    below: bool = False,
) -> float:
    """Write TEXT on a ground of COLOR at CORNER, above it if there is room; return its height."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 6
    x, y = corner
    y = y if below or y < height else y - height
    pen.rectangle((x, y, x + width, y + height), fill=color)
    pen.text((x + 4 - left, y + 3 - top), text, fill=TEXT, font=font)
    return height


def _font(image: Image.Image) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=max(10, min(image.size) / 26))
