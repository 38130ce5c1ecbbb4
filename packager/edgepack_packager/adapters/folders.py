"""Samples as a folder of pictures, one subfolder per class. Judges no model.

A picture becomes a tensor by the same preprocessing as on the device, so that what is calibrated
and evaluated is what a camera will feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import UsageError
from edgepack.manifest import Binding, TensorSpec
from edgepack_packager.core.images import preprocess_of, with_layout
from edgepack_targets.pipeline.preprocess import read_image, to_tensor

if TYPE_CHECKING:
    from edgepack_packager.core.binding import Public
    from edgepack_packager.core.recipe import ModelCard

__all__ = ["PICTURES", "read_folder"]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


def read_folder(
    path: Path, inputs: Sequence[Public], card: ModelCard, *, what: str, labelled: bool
) -> dict[str, NDArray[Any]]:
    """Return the pictures under PATH as arrays: the image input, and `labels` if LABELLED.

    Args:
        path: For labelled samples one subfolder per class, named like its label; without labels
            in CARD, classes are the subfolders in alphabetical order. Else pictures anywhere.
        inputs: Of the model; there must be one.
        card: Says how a picture becomes a tensor, and the labels in their order.
        what: For messages: `calibration data`.
        labelled: Whether labels are wanted.

    Raises:
        UsageError: no pictures, no preprocessing, a subfolder that is no label, or a picture
            that cannot be read.
    """
    rule = preprocess_of(inputs, card)
    if rule is None or len(inputs) != 1:
        raise UsageError(
            f"{what} is a folder, and it is not said how a picture becomes the model's input",
            fix='--preprocess \'{"color": "rgb"}\', or give an .npz',
            reason="no_preprocess",
        )
    (public,) = inputs
    binding = Binding(native_name=public.name)
    spec = TensorSpec(
        name=public.name, shape=public.shape, dtype=cast("Any", public.dtype), binding=binding
    )
    spec = with_layout(spec, rule)
    found = _labelled(path, card.labels, what) if labelled else _pictures(path, what)
    tensors = [to_tensor(rule, spec, read_image(picture)) for picture, _ in found]
    arrays = {public.name: np.concatenate(tensors)}
    return arrays | ({"labels": np.array([label for _, label in found])} if labelled else {})


def _labelled(path: Path, labels: Sequence[str], what: str) -> list[tuple[Path, int]]:
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir())
    names = list(labels) or [entry.name for entry in classes]
    strangers = [entry.name for entry in classes if entry.name not in names]
    if strangers or not classes:
        raise UsageError(
            f"{what}: {path} does not have one subfolder per class",
            why=f"not a label: {', '.join(strangers)}" if strangers else "it has no subfolders",
            fix="name subfolders like the labels, each with the pictures of that class",
            reason="folder_classes",
        )
    return [
        (picture, names.index(entry.name))
        for entry in classes
        for picture, _ in _pictures(entry, what)
    ]


def _pictures(path: Path, what: str) -> list[tuple[Path, int]]:
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if not found:
        raise UsageError(
            f"{what}: there are no pictures in {path}",
            fix=f"known: {', '.join(sorted(PICTURES))}; or give an .npz",
            reason="folder_empty",
        )
    return [(picture, -1) for picture in found]
