"""How a picture becomes an input tensor: which input it is, and where the colours stand. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.manifest import Preprocess, TensorSpec
    from edgepack_packager.core.binding import Public
    from edgepack_packager.core.recipe import ModelCard

__all__ = ["preprocess_of", "with_layout"]


def preprocess_of(inputs: Sequence[Public], card: ModelCard) -> Preprocess | None:
    """Return the preprocessing that CARD says, for an input that is there; None: it says none.

    Raises:
        UsageError: it names an input that the model does not have.
    """
    if card.preprocess is None:
        return None
    chosen = card.preprocess.input or inputs[0].name
    if chosen not in {public.name for public in inputs}:
        raise UsageError(
            f"preprocess names the input {chosen}, which is not there",
            fix=f"inputs are: {', '.join(i.name for i in inputs)}",
            reason="unknown_input",
        )
    return msgspec.structs.replace(card.preprocess, input=chosen)


def with_layout(spec: TensorSpec, preprocess: Preprocess | None) -> TensorSpec:
    """Say the layout of an image input: the axis with 1 or 3 entries holds the colours.

    Raises:
        UsageError: neither axis can hold them.
    """
    if preprocess is None or spec.name != preprocess.input or len(spec.shape) != 4:
        return spec
    channels = 1 if preprocess.color == "gray" else 3
    last, first = spec.shape[3] == channels, spec.shape[1] == channels
    if not (last or first):
        raise UsageError(
            f"input {spec.name} {list(spec.shape)} does not take {preprocess.color} images",
            fix='set "color" in the preprocess settings to "gray" or "rgb"',
            reason="bad_preprocess",
        )
    return msgspec.structs.replace(spec, layout="NHWC" if last else "NCHW")
