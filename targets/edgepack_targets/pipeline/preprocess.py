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
    _check_frame(picture)
    return Image.fromarray(picture)


def _check_frame(picture: Frame) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise UsageError(
            "the frame is no picture",
            why=f"it is {picture.dtype} {list(picture.shape)}, not uint8 [height, width, 3]",
            reason="bad_image",
        )


def image_tensor(manifest: Manifest, picture: Image.Image | Frame) -> tuple[str, NDArray[Any]]:
    """Return the public input's name and PICTURE as its tensor, with a batch axis of 1.

    Raises:
        UnsupportedError: The manifest describes no preprocessing, or no fixed image size.
        UsageError: PICTURE is no picture, or too long and thin to be cut.
    """
    rule, spec = image_spec(manifest)
    return spec.name, to_tensor(rule, spec, picture)


def to_tensor(rule: Preprocess, spec: TensorSpec, picture: Image.Image | Frame) -> NDArray[Any]:
    """Return PICTURE as the tensor that SPEC describes, with a batch axis of 1.

    Raises:
        UnsupportedError: SPEC has no fixed image size.
        UsageError: PICTURE is no picture.
    """
    canvas = canvas_in(rule, spec)
    raw = _fitted(picture, rule, canvas.width, canvas.height)
    pixels = _pixels(raw, rule, channels_first=canvas.channels_first)
    return np.ascontiguousarray(_cast(pixels, spec)[None])


def _fitted(picture: Image.Image | Frame, rule: Preprocess, width: int, height: int) -> Frame:
    """Return PICTURE as (height, width, channels) of uint8."""
    if not isinstance(picture, Image.Image) and rule.color != "gray":
        _check_frame(picture)
        if picture.shape[:2] == (height, width):
            return picture  # as it is: Pillow would only copy it, twice
    image = resize(_colored(as_image(picture), rule), width, height, rule.resize)
    raw = np.asarray(image)
    return raw[:, :, None] if raw.ndim == 2 else raw


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


def _pixels(raw: Frame, rule: Preprocess, *, channels_first: bool) -> NDArray[np.float32]:
    """Return RAW as numbers, scaled and normalised: (height, width, channels), or these first."""
    raw = raw[:, :, ::-1] if rule.color == "bgr" else raw
    height, width, channels = raw.shape
    # By plane or by row: numpy is five times as slow with an innermost axis of three.
    if channels_first:
        raw = np.ascontiguousarray(raw.transpose(2, 0, 1))
    else:
        raw = raw.reshape(height, width * channels)
    pixels = np.divide(raw, np.float32(rule.scale), dtype=np.float32)
    if any(rule.mean):
        pixels -= _along(rule.mean, None if channels_first else width)
    if any(std != 1 for std in rule.std):
        pixels /= _along(rule.std, None if channels_first else width)
    return np.asarray(pixels if channels_first else pixels.reshape(height, width, channels))


@lru_cache(maxsize=32)
def _along(values: tuple[float, ...], width: int | None) -> NDArray[np.float32]:
    """Return VALUES, one for each channel or one for all, for a row of WIDTH pixels, or planes."""
    known = np.asarray(values, np.float32)
    if width is None:
        known = known[:, None, None]
    elif known.size > 1:
        known = np.tile(known, width)
    known.setflags(write=False)  # it is kept
    return known


def _cast(pixels: NDArray[np.float32], spec: TensorSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return pixels.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(pixels), limits.min, limits.max).astype(dtype)
