"""How output tensors become an answer: `postprocess` of the manifest, one struct for each decoder.

Says what there is to know about the outputs; reads none.
"""

from typing import Annotated, Literal

import msgspec

__all__ = [
    "OUTPUT_FIELDS",
    "Detector",
    "Embed",
    "Mask",
    "Postprocess",
    "Softmax",
    "Ssd",
    "Undecoded",
    "Yolo",
]

OUTPUT_FIELDS = ("output", "boxes", "scores", "classes", "count")
"""Fields that name an output of the model."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Decoder(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="decoder"
):
    """From output tensors to an answer: one way of reading them, with what it has to know."""

    @property
    def decoder(self) -> str:
        """The name of the way, as the manifest and the recipe write it."""
        return str(self.__struct_config__.tag)


class Softmax(_Decoder, frozen=True, kw_only=True, tag="softmax"):
    """A classifier: one score for each class."""

    output: str = ""
    activation: Literal["softmax", "none"] = "none"
    """What is still to be applied: `softmax` if the output holds logits."""
    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5


class Detector(_Decoder, frozen=True, kw_only=True):
    """What all detectors have to say about their boxes.

    `xyxy`, `yxyx`: two corners; `xywh`: the upper left corner and the size; `cxcywh`: the centre
    and the size. `pixels` are those of the model's input, `normalised` is 0..1 of it.
    """

    box_format: Literal["xyxy", "yxyx", "xywh", "cxcywh"] = "xyxy"
    box_space: Literal["pixels", "normalised"] = "pixels"
    score_threshold: Share = 0.25
    """Objects with a lower score are left out."""
    nms_iou: Share | None = 0.45
    """A box that covers a better one by more than this is left out; None: none is."""
    class_agnostic: bool = False
    """Whether boxes of other classes count for that, too."""
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class Ssd(Detector, frozen=True, kw_only=True, tag="ssd"):
    """Boxes and scores in outputs of their own, as SSD and most exported detectors give them.

    Boxes are `[1, N, 4]`. Scores are `[1, N]` beside an output `classes` `[1, N]`, or
    `[1, N, classes]` without one. The batch axis may be missing.
    """

    boxes: str
    scores: str
    classes: str = ""
    """Output with the class of each box; empty: the scores have one for each class."""
    count: str = ""
    """Output with how many of the boxes are meant; empty: all."""
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    """What is still to be applied to the scores."""
    background: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """The class that stands for nothing."""


class Yolo(Detector, frozen=True, kw_only=True, tag="yolo"):
    """One output with four numbers of the box and one score for each class, for many boxes."""

    output: str = ""
    channels: Literal["first", "last"] = "first"
    """`first`: `[1, 4 + classes, N]` (v8 and later); `last`: `[1, N, 4 + classes]`."""
    objectness: bool = False
    """Whether a score for any object stands between box and classes (v5, v7), to multiply by."""
    box_format: Literal["xyxy", "yxyx", "xywh", "cxcywh"] = "cxcywh"
    activation: Literal["none", "sigmoid"] = "none"
    """What is still to be applied to the scores."""


class Mask(_Decoder, frozen=True, kw_only=True, tag="mask"):
    """A class for every pixel."""

    output: str = ""
    channels: Literal["first", "last", "none"] = "first"
    """Where the classes stand: `[1, C, H, W]`, `[1, H, W, C]`, or no such axis: `[1, H, W]`.

    The highest of several classes wins. A single one is there where its score reaches the
    threshold: class 1, else 0. Whole numbers without such an axis are the classes themselves.
    """
    activation: Literal["none", "sigmoid"] = "none"
    """What is still to be applied to a single class."""
    threshold: Share = 0.5


class Embed(_Decoder, frozen=True, kw_only=True, tag="embedding"):
    """A vector that stands for the picture; brought to length 1."""

    output: str = ""


class Undecoded(_Decoder, frozen=True, kw_only=True, tag="none"):
    """The output tensors are the answer."""

    output: str = ""


Postprocess = Softmax | Ssd | Yolo | Mask | Embed | Undecoded
"""From output tensors to an answer; `decoder` says which."""
