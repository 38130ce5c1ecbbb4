"""The image that an input tensor holds: how large it is, and where its colours stand. Pure."""

from typing import NamedTuple

from edgepack.errors import UnsupportedError
from edgepack.manifest import Manifest, Preprocess, TensorSpec

__all__ = ["CHANNELS", "Canvas", "canvas_in", "canvas_of", "image_spec"]

CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


class Canvas(NamedTuple):
    """Where the pixels stand in the tensor."""

    height: int
    width: int
    channels_first: bool


def image_spec(manifest: Manifest) -> tuple[Preprocess, TensorSpec]:
    """Return the preprocessing of MANIFEST and the input it feeds.

    Raises:
        UnsupportedError: there is none.
    """
    rule = manifest.preprocess
    spec = next((s for s in manifest.inputs if rule and s.name == rule.input), None)
    if rule is None or spec is None:
        raise UnsupportedError(
            f"{manifest.release} does not say how an image becomes its input",
            fix="build it with a recipe that has `preprocess`, or feed tensors",
            reason="no_preprocess",
        )
    return rule, spec


def canvas_of(manifest: Manifest) -> Canvas:
    """Return the canvas of the input that images of MANIFEST go to.

    Raises:
        UnsupportedError: there is none, or it has no fixed image size.
    """
    rule, spec = image_spec(manifest)
    return canvas_in(rule, spec)


def canvas_in(rule: Preprocess, spec: TensorSpec) -> Canvas:
    """Return where height, width and the channels of RULE stand in SPEC.

    Raises:
        UnsupportedError: SPEC has no fixed image size.
    """
    channels = CHANNELS[rule.color]
    if len(spec.shape) == 4:
        first = spec.layout == "NCHW" or (spec.layout is None and spec.shape[1] == channels)
        depth, *size = spec.shape[1:] if first else (spec.shape[3], *spec.shape[1:3])
        if depth == channels and min(size) > 0 and spec.shape[0] in (1, -1):
            return Canvas(size[0], size[1], first)
    raise UnsupportedError(
        f"an image does not become `{spec.name}`",
        why=f"its shape is {list(spec.shape)}, its layout {spec.layout or 'unknown'}, "
        f"and the image has {channels} channels",
        fix="give the input one fixed image size and a layout of NHWC or NCHW",
        reason="no_image_input",
    )
