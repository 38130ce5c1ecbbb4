"""From an image to an input tensor, by the manifest alone. Pillow is the one resizer.

Host and device both come through here, so that calibration, evaluation and the camera see the
same numbers. Decodes no video.
"""

import io
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Manifest, Preprocess, Resize, TensorSpec
from edgepack_targets.pipeline.canvas import canvas_in, image_spec
from edgepack_targets.pipeline.geometry import place

__all__ = ["Frame", "as_image", "image_tensor", "read_image", "resize", "to_tensor"]

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
"""Pillow's modes of 8 bits per channel; others would be clipped silently."""

Frame = NDArray[np.uint8]
"""A picture as an array: (height, width, 3), red first."""


def read_image(source: Path | bytes) -> Image.Image:
    """Return the image in SOURCE, a file or its content, fully decoded.

    Raises:
        UsageError: It is missing, damaged, no image, or larger than Pillow thinks safe.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            # Pillow only warns of an image that would fill the memory; here it is an error.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            image.load()
    except (
        UnidentifiedImageError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        # Pillow names the object that it looked at, with its address in memory.
        known = not isinstance(error, UnidentifiedImageError)
        why = str(error) if known else "it is of no kind that Pillow knows"
        raise UsageError(f"{name} cannot be read", why=why, reason="bad_image") from error
    return image


def as_image(picture: Image.Image | Frame) -> Image.Image:
    """Return PICTURE, an image or an array (height, width, 3) of uint8 RGB, as an image.

    Raises:
        UsageError: The array is no picture.
    """
    if isinstance(picture, Image.Image):
        return picture
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UsageError(
            "the frame is no picture",
            why=f"it is {picture.dtype} {list(picture.shape)}, not uint8 [height, width, 3]",
            reason="bad_image",
        )
    return Image.fromarray(picture)


def image_tensor(manifest: Manifest, picture: Image.Image | Frame) -> tuple[str, NDArray[Any]]:
    """Return the public input's name and PICTURE as its tensor, with a batch axis of 1.

    Raises:
        UnsupportedError: The manifest describes no preprocessing, or no fixed image size.
        UsageError: PICTURE is no picture, or too long and thin to be cut.
    """
    rule, spec = image_spec(manifest)
    return spec.name, to_tensor(rule, spec, as_image(picture))


def to_tensor(rule: Preprocess, spec: TensorSpec, image: Image.Image) -> NDArray[Any]:
    """Return IMAGE as the tensor that SPEC describes, with a batch axis of 1.

    Raises:
        UnsupportedError: SPEC has no fixed image size.
    """
    canvas = canvas_in(rule, spec)
    pixels = _pixels(resize(_colored(image, rule), canvas.width, canvas.height, rule.resize), rule)
    if canvas.channels_first:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(_cast(pixels, spec)[None])


def resize(image: Image.Image, width: int, height: int, rule: Resize) -> Image.Image:
    """Return IMAGE at WIDTH x HEIGHT pixels: stretched, padded or cut as RULE says."""
    placed = place(rule, image.size, (width, height))
    if image.size != placed.inner:
        image = image.resize(placed.inner, INTERPOLATION[rule.interpolation])
    if placed.inner == placed.canvas:
        return image
    left, top = placed.offset
    if rule.mode == "crop":
        return image.crop((-left, -top, width - left, height - top))
    padding = (rule.pad,) * len(image.getbands())
    canvas = Image.new(image.mode, placed.canvas, padding[0] if len(padding) == 1 else padding)
    canvas.paste(image, placed.offset)
    return canvas


def _colored(image: Image.Image, rule: Preprocess) -> Image.Image:
    if image.mode not in MODES:
        raise UnsupportedError(
            f"images of mode {image.mode} are not supported",
            why="only 8 bits per channel are",
            fix="convert the image to 8 bits first",
            reason="image_mode",
        )
    wanted = "L" if rule.color == "gray" else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _pixels(image: Image.Image, rule: Preprocess) -> NDArray[np.float32]:
    """Return IMAGE as (height, width, channels) numbers, scaled and normalised."""
    raw = np.asarray(image)
    raw = raw[:, :, None] if raw.ndim == 2 else raw
    raw = raw[:, :, ::-1] if rule.color == "bgr" else raw
    tables = _tables(rule.scale, rule.mean, rule.std)
    if len(tables) == 1:
        return tables[0].take(raw)
    channels = [table.take(raw[:, :, place]) for place, table in enumerate(tables)]
    return np.stack(channels, axis=2)


@lru_cache(maxsize=16)
def _tables(
    scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], ...]:
    """Return for each channel, or for all, what becomes of every value that a byte can have.

    The same operations as on the picture, on 256 numbers instead of a hundred thousand.
    """
    raw = np.arange(256, dtype=np.float32)[:, None]
    of, by = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    table = np.asarray((raw / np.float32(scale) - of) / by, np.float32)
    return tuple(np.ascontiguousarray(column) for column in table.T)


def _cast(pixels: NDArray[np.float32], spec: TensorSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return pixels.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(pixels), limits.min, limits.max).astype(dtype)
