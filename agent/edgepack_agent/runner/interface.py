"""What the runner's parts expect of a loaded model. Loads none and imports no runtime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.manifest import Manifest
from edgepack_agent.runner.statistics import Statistics
from edgepack_targets.interface import Effective

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack_targets.pipeline.answer import Answer

__all__ = ["DecodedImage", "EncodedImage", "Load", "Model", "Offer", "Watched"]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image file, still to be decoded and preprocessed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as (height, width, 3) of uint8, red first, still to be preprocessed."""

    pixels: "NDArray[Any]"


@dataclass(frozen=True, slots=True)
class Watched:
    """A frame, and what the model says of it."""

    frame: "NDArray[Any]"
    """(height, width, 3) of uint8, red first."""
    answer: "Answer"
    said: dict[str, Any]
    """The plain answer, digest, milliseconds."""


Offer = Callable[
    [
        "Mapping[str, NDArray[Any] | EncodedImage | DecodedImage]",
        "Mapping[str, NDArray[Any]]",
        float,
    ],
    None,
]
"""Takes inputs, the outputs they got and the milliseconds that took; returns at once."""


class Model(Protocol):
    """A loaded model; its methods are called one at a time, by whoever has its turn."""

    offer: Offer | None
    """Takes what was answered, to show it to another runner."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        ...

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        ...

    @property
    def effective(self) -> Effective:
        """What the model really runs with."""
        ...

    def answer(
        self, inputs: "Mapping[str, NDArray[Any] | EncodedImage | DecodedImage]"
    ) -> "dict[str, NDArray[Any]]":
        """Return the outputs for INPUTS."""
        ...

    def decided(self, outputs: "Mapping[str, NDArray[Any]]") -> None:
        """Count what OUTPUTS of `answer` say; any thread may call it."""
        ...

    def aside(
        self, tensors: "Mapping[str, NDArray[Any]]"
    ) -> "tuple[dict[str, NDArray[Any]], float]":
        """Return the outputs for TENSORS and the milliseconds they took; count nothing."""
        ...

    def look(self, image: bytes) -> dict[str, Any]:
        """Return what the model says of IMAGE: the plain answer, digest, milliseconds."""
        ...

    def watch(self, frame: "NDArray[Any]") -> Watched:
        """Return what the model says of FRAME, (height, width, 3) of uint8, red first."""
        ...

    def check(self, exam: Path | None, min_score: float) -> dict[str, Any]:
        """Return how the golden vectors and the exam went."""
        ...


Load = Callable[[Statistics, Callable[[], None]], Model]
"""Loads a model that counts in the statistics and calls the function as a check goes on."""
