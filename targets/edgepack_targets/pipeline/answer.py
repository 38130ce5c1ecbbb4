"""What a model says of a picture, in the picture's own terms. Reads no tensor, draws nothing.

Every answer has `plain()`, small and ready for JSON: what results, events and the command line
show; and `top()`, the labels with their confidence: what telemetry counts.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Answer",
    "Classification",
    "Detection",
    "Detections",
    "Embedding",
    "Guess",
    "Raw",
    "Segmentation",
    "label_of",
]

Top = tuple[tuple[str, float], ...]

UNSEEN = -1
"""In a class map: a pixel that was cut off before the model saw the picture."""
MIN_SHARE = 0.01
"""A region smaller than this share of the picture is not counted."""
DIGITS = 6
MAX_VECTOR = 4096
"""A longer vector is not written out."""


@dataclass(frozen=True, slots=True)
class Guess:
    """One class and how sure the model is of it."""

    index: int
    label: str
    """The class's name, or its index as text where the manifest has none."""
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The best classes, best first; never empty."""

    guesses: tuple[Guess, ...]

    def plain(self) -> dict[str, Any]:
        """Return `{"task": "classify", "top": [{"index", "label", "score"}]}`."""
        top = [asdict(guess) | {"score": round(guess.score, DIGITS)} for guess in self.guesses]
        return {"task": "classify", "top": top}

    def top(self) -> Top:
        """Return the best class and its score."""
        return tuple((guess.label, guess.score) for guess in self.guesses[:1])


@dataclass(frozen=True, slots=True)
class Detection:
    """One object: its class, and the box around it."""

    index: int
    label: str
    """The class's name, or its index as text where the manifest has none."""
    score: float
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the picture as it was before any resizing."""


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects in a picture, the surest first."""

    objects: tuple[Detection, ...]

    def plain(self) -> dict[str, Any]:
        """Return `{"task": "detect", "objects": [{"index", "label", "score", "box"}]}`."""
        return {"task": "detect", "objects": [_plain(found) for found in self.objects]}

    def top(self) -> Top:
        """Return the class and score of every object."""
        return tuple((found.label, found.score) for found in self.objects)


def _plain(found: Detection) -> dict[str, Any]:
    box = [round(edge, 2) for edge in found.box]
    return asdict(found) | {"score": round(found.score, DIGITS), "box": box}


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """A class for every pixel of the picture."""

    classes: NDArray[np.int32]
    """(height, width); -1 where the picture was cut off before the model saw it."""
    labels: tuple[str, ...]

    def label(self, index: int) -> str:
        """Return the name of class INDEX, or its index as text."""
        return label_of(self.labels, index)

    def shares(self) -> dict[int, float]:
        """Return the share of the seen picture that each class covers, the largest first."""
        indices, counts = np.unique(self.classes[self.classes != UNSEEN], return_counts=True)
        total = max(1, int(counts.sum()))
        found = zip(indices.tolist(), counts.tolist(), strict=True)
        return {i: count / total for i, count in sorted(found, key=lambda pair: -pair[1])}

    def plain(self) -> dict[str, Any]:
        """Return `{"task": "segment", "size": [width, height], "regions": [...]}`.

        A region has `index`, `label` and `share`: how much of the picture the class covers.
        """
        height, width = self.classes.shape
        regions = [
            {"index": index, "label": self.label(index), "share": round(share, DIGITS)}
            for index, share in self.shares().items()
        ]
        return {"task": "segment", "size": [width, height], "regions": regions}

    def top(self) -> Top:
        """Return each class that covers a hundredth of the picture, with the share it covers."""
        shares = self.shares().items()
        return tuple((self.label(index), share) for index, share in shares if share >= MIN_SHARE)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A vector that stands for the picture."""

    vector: NDArray[np.float32]
    """(size,), of length 1; all zero if the model gave nothing but zeros."""

    def plain(self) -> dict[str, Any]:
        """Return `{"task": "embed", "size", "vector"}`; no vector if it is very long."""
        told: dict[str, Any] = {"task": "embed", "size": len(self.vector)}
        if len(self.vector) <= MAX_VECTOR:
            told["vector"] = [round(float(number), DIGITS) for number in self.vector]
        return told

    def top(self) -> Top:
        """Return nothing: there are no classes."""
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """The output tensors themselves, by public name."""

    outputs: dict[str, NDArray[Any]]

    def plain(self) -> dict[str, Any]:
        """Return `{"task": "raw", "outputs": {name: {"dtype", "shape"}}}`: no numbers."""
        outputs = {
            name: {"dtype": array.dtype.name, "shape": list(array.shape)}
            for name, array in self.outputs.items()
        }
        return {"task": "raw", "outputs": outputs}

    def top(self) -> Top:
        """Return nothing: there are no classes."""
        return ()


Answer = Classification | Detections | Segmentation | Embedding | Raw


def label_of(labels: tuple[str, ...], index: int) -> str:
    """Return the name of class INDEX, or its index as text where LABELS has none."""
    return labels[index] if 0 <= index < len(labels) else str(index)
