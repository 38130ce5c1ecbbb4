"""What `--json` prints of an answer, `Answer.plain()` as types; see `documents`."""

from typing import Literal, NotRequired, TypedDict

from edgepack.manifest import Count

__all__ = ["AnswerFacts"]


class GuessFacts(TypedDict):
    """One class and how sure the model is of it."""

    index: Count
    label: str
    score: float


class ObjectFacts(GuessFacts):
    """One object; `box` is left, top, right, bottom in pixels of the picture."""

    box: list[float]


class RegionFacts(TypedDict):
    """A class and the share of the picture that it covers."""

    index: Count
    label: str
    share: float


class TensorFacts(TypedDict):
    """An output tensor, without its numbers."""

    dtype: str
    shape: list[Count]


class AnswerFacts(TypedDict):
    """What a model says of a picture; the task tells which of the fields are there."""

    task: Literal["classify", "detect", "segment", "embed", "raw"]
    top: NotRequired[list[GuessFacts]]
    """Of a classifier, the best first."""
    objects: NotRequired[list[ObjectFacts]]
    """Of a detector, the surest first."""
    size: NotRequired[list[Count] | Count]
    """Width and height of a class map; number of entries of a vector."""
    regions: NotRequired[list[RegionFacts]]
    """Of a segmenting model, the largest first."""
    vector: NotRequired[list[float]]
    """Of length 1; left out where it has more than 4096 entries."""
    outputs: NotRequired[dict[str, TensorFacts]]
    """By public name."""
