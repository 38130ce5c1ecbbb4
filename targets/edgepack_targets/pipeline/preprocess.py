"""From an image to an input tensor, by the manifest alone. Pillow is the one resizer.

Host and device both come through here, so that calibration, evaluation and the camera see the
same numbers. Decodes no video.
"""

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edgepack.errors import UnsupportedError, UsageError
from edgepack.manifest import Manifest, Preprocess, Resize, TensorSpec

__all__ = ["image_tensor", "read_image", "resize", "to_tensor"]

INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
"""Pillow's modes of 8 bits per channel; others would be clipped silently."""

MAX_PIXELS = 64 << 20
"""Of an image that is enlarged before it is cut."""


class _Canvas(NamedTuple):
    """Where the pixels stand in the tensor."""

    height: int
    width: int
    channels_first: bool


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
        raise UsageError(f"{name} cannot be read", why=str(error), reason="bad_image") from error
    return image


def image_tensor(manifest: Manifest, image: Image.Image) -> tuple[str, NDArray[Any]]:
    """Return the public input's name and IMAGE as its tensor, with a batch axis of 1.

    Raises:
        UnsupportedError: The manifest describes no preprocessing, or no fixed image size.
    """
    rule = manifest.preprocess
    spec = next((s for s in manifest.inputs if rule and s.name == rule.input), None)
    if rule is None or spec is None:
        raise UnsupportedError(
            f"{manifest.release} does not say how an image becomes its input",
            fix="build it with a recipe that has `preprocess`, or feed tensors",
            reason="no_preprocess",
        )
    return spec.name, to_tensor(rule, spec, image)


def to_tensor(rule: Preprocess, spec: TensorSpec, image: Image.Image) -> NDArray[Any]:
    """Return IMAGE as the tensor that SPEC describes, with a batch axis of 1.

    Raises:
        UnsupportedError: SPEC has no fixed image size.
    """
    canvas = _canvas(spec, CHANNELS[rule.color])
    pixels = _pixels(resize(_colored(image, rule), canvas.width, canvas.height, rule.resize), rule)
    if canvas.channels_first:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(_cast(pixels, spec)[None])


def resize(image: Image.Image, width: int, height: int, rule: Resize) -> Image.Image:
    """Return IMAGE at WIDTH x HEIGHT pixels: stretched, padded or cut as RULE says."""
    return RESIZERS[rule.mode](image, width, height, rule)


def _stretch(image: Image.Image, width: int, height: int, rule: Resize) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), INTERPOLATION[rule.interpolation])


def _letterbox(image: Image.Image, width: int, height: int, rule: Resize) -> Image.Image:
    """Fit the whole image in, centred, the rest filled with the padding."""
    factor = min(width / image.width, height / image.height)
    inner = _stretch(image, *_scaled(image, factor, width, height, min), rule)
    padding = (rule.pad,) * len(image.getbands())
    canvas = Image.new(image.mode, (width, height), padding[0] if len(padding) == 1 else padding)
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas


def _crop(image: Image.Image, width: int, height: int, rule: Resize) -> Image.Image:
    """Fill the canvas and cut what stands out, the middle kept."""
    factor = max(width / image.width, height / image.height)
    size = _scaled(image, factor, width, height, max)
    if math.prod(size) > MAX_PIXELS:
        # A line of one pixel's width is a small file, but fills the memory when it is enlarged.
        raise UsageError(
            f"an image of {image.width} x {image.height} pixels is too long and thin to be cut",
            why=f"to fill {width} x {height} it would have to become {size[0]} x {size[1]}",
            reason="bad_image",
        )
    outer = _stretch(image, *size, rule)
    left, top = (outer.width - width) // 2, (outer.height - height) // 2
    return outer.crop((left, top, left + width, top + height))


def _scaled(
    image: Image.Image, factor: float, width: int, height: int, bound: Callable[[int, int], int]
) -> tuple[int, int]:
    """Return the size of IMAGE times FACTOR, whole pixels, bounded by the canvas."""
    return (
        max(1, bound(width, round(image.width * factor))),
        max(1, bound(height, round(image.height * factor))),
    )


RESIZERS = {"stretch": _stretch, "letterbox": _letterbox, "crop": _crop}


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
    raw = np.asarray(image, np.float32)
    raw = raw[:, :, None] if raw.ndim == 2 else raw
    raw = raw[:, :, ::-1] if rule.color == "bgr" else raw
    mean, std = np.asarray(rule.mean, np.float32), np.asarray(rule.std, np.float32)
    return np.asarray((raw / np.float32(rule.scale) - mean) / std, np.float32)


def _cast(pixels: NDArray[np.float32], spec: TensorSpec) -> NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return pixels.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(pixels), limits.min, limits.max).astype(dtype)


def _canvas(spec: TensorSpec, channels: int) -> _Canvas:
    """Return where height, width and CHANNELS stand in SPEC."""
    if len(spec.shape) == 4:
        first = spec.layout == "NCHW" or (spec.layout is None and spec.shape[1] == channels)
        depth, *size = spec.shape[1:] if first else (spec.shape[3], *spec.shape[1:3])
        if depth == channels and min(size) > 0 and spec.shape[0] in (1, -1):
            return _Canvas(size[0], size[1], first)
    raise UnsupportedError(
        f"an image does not become `{spec.name}`",
        why=f"its shape is {list(spec.shape)}, its layout {spec.layout or 'unknown'}, "
        f"and the image has {channels} channels",
        fix="give the input one fixed image size and a layout of NHWC or NCHW",
        reason="no_image_input",
    )
