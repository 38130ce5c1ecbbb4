"""A loaded model: answers inputs and images, proves itself, counts. Has no queue and no socket.

Everything here but `decided` runs when it is the model's turn: one call at a time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgepack.errors import EdgepackError
from edgepack.manifest import Manifest
from edgepack_agent.runner.interface import DecodedImage, EncodedImage, Offer, Watched
from edgepack_agent.runner.moments import Moments
from edgepack_agent.runner.protocol import Given, RequestError
from edgepack_agent.runner.setup import Setup
from edgepack_agent.runner.slot import Slot
from edgepack_agent.runner.statistics import Statistics
from edgepack_targets import registry
from edgepack_targets.interface import Effective, Session
from edgepack_targets.pipeline import golden
from edgepack_targets.pipeline.answer import Answer
from edgepack_targets.pipeline.baseline import read_baseline
from edgepack_targets.pipeline.postprocess import decode
from edgepack_targets.pipeline.preprocess import Frame, as_image, image_tensor, read_image

__all__ = ["LoadedModel"]

Array = NDArray[Any]


class LoadedModel:
    """The model of a slot, loaded and warmed up; see `interface.Model`.

    Args:
        slot: A verified slot.
        setup: How it is to run.
        statistics: Where answers are counted.
        progressed: Called after every inference of a longer check.

    Attributes:
        offer: Takes what was answered, to show it to another runner.

    Raises:
        UnsupportedError: its runtime is missing, too old or of another precision, or does not
            have the device.
        IntegrityError: the model is not the one that the manifest describes.
    """

    def __init__(
        self,
        slot: Slot,
        setup: Setup,
        statistics: Statistics,
        progressed: Callable[[], None],
    ) -> None:
        self._slot, self._statistics, self._progressed = slot, statistics, progressed
        self.offer: Offer | None = None
        target = registry.find(slot.manifest.target.runtime)
        self._session = target.load(
            slot.directory / "model", slot.manifest, threads=setup.threads, place=setup.place()
        )
        self._session.run(_zeros(slot.manifest))
        self._moments = Moments(read_baseline(slot.manifest.drift), statistics, time.monotonic)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._slot.manifest

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._slot.digest

    @property
    def effective(self) -> Effective:
        """What the model really runs with."""
        return self._session.effective

    def answer(self, inputs: Mapping[str, Given]) -> dict[str, Array]:
        """Return the outputs for INPUTS.

        Raises:
            RequestError: 400; an image cannot be decoded.
        """
        return self._run({name: self._tensor(value) for name, value in inputs.items()}, inputs)

    def decided(self, outputs: Mapping[str, Array]) -> None:
        """Count what the outputs of a request say; whoever asked reads them without us."""
        try:
            self._count(decode(self.manifest, outputs))
        except EdgepackError:
            # A client may send several samples at once, or odd ones: no fault of the model.
            self._statistics.failed("not_decoded")

    def look(self, image: bytes) -> dict[str, Any]:
        """Return what the model says of IMAGE: the plain answer, digest, milliseconds.

        Raises:
            RequestError: the image cannot be decoded, the model takes none, or its outputs
                are not what its manifest says.
        """
        return self._said(lambda: read_image(image), EncodedImage(image))[0]

    def watch(self, frame: Frame) -> Watched:
        """Return what the model says of FRAME, (height, width, 3) of uint8, red first.

        Raises:
            RequestError: as `look`.
        """
        said, answer = self._said(lambda: as_image(frame), DecodedImage(frame))
        return Watched(frame, answer, said)

    def _said(self, read: Callable[[], Image.Image], shown: Given) -> tuple[dict[str, Any], Answer]:
        start = time.perf_counter()
        try:
            answer = self._see(read(), shown)
        except EdgepackError as error:
            raise _refused(error) from error
        ms = round((time.perf_counter() - start) * 1000, 3)
        return answer.plain() | {"digest": self.digest, "ms": ms}, answer

    def see(self, picture: Image.Image | Frame) -> Answer:
        """Return what the model says of PICTURE, and count it.

        Args:
            picture: An image, or an array (height, width, 3) of uint8, red first.

        Raises:
            EdgepackError: PICTURE is none, the model takes none, or its outputs are not what
                its manifest says.
        """
        return self._see(picture, None)

    def _see(self, picture: Image.Image | Frame, shown: Given | None) -> Answer:
        image = as_image(picture)
        name, tensor = image_tensor(self.manifest, image)
        outputs = self._run({name: tensor}, {} if shown is None else {name: shown})
        answer = decode(self.manifest, outputs, image.size)
        self._count(answer)
        return answer

    def aside(self, tensors: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """Return the outputs for TENSORS and the milliseconds they took; count nothing."""
        start = time.perf_counter()
        outputs = self._session.run(tensors)
        return outputs, (time.perf_counter() - start) * 1000

    def _run(self, tensors: Mapping[str, Array], shown: Mapping[str, Given]) -> dict[str, Array]:
        """Return the outputs for TENSORS, made of what is SHOWN to others, and count them."""
        outputs, ms = self.aside(tensors)
        self._statistics.inferred(ms)
        self._moments.count(tensors, outputs)
        if self.offer is not None and shown:
            self.offer(shown, outputs, ms)
        return outputs

    def _tensor(self, value: Given) -> Array:
        if isinstance(value, np.ndarray):
            return value
        try:
            found = read_image(value.data) if isinstance(value, EncodedImage) else value.pixels
            return image_tensor(self.manifest, found)[1]
        except EdgepackError as error:
            raise _refused(error) from error

    def _count(self, answer: Answer) -> None:
        for label, confidence in answer.top():
            self._statistics.decided(label, confidence)

    def check(self, exam: Path | None, min_score: float) -> dict[str, Any]:
        """Return how the golden vectors and the exam went.

        Raises:
            IntegrityError: a file is not what it must be.
        """
        watched = _Watched(self._session, self._progressed)
        verdict = golden.check_golden(watched, self.manifest, self._slot.directory)
        result = golden.check_exam(watched, self.manifest, exam, min_score) if exam else None
        return {"golden": asdict(verdict), "exam": asdict(result) if result else None}


class _Watched:
    """A session that reports its progress; see `interface.Session`."""

    def __init__(self, session: Session, progressed: Callable[[], None]) -> None:
        self._session, self._progressed = session, progressed

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for INPUTS."""
        outputs = self._session.run(inputs)
        self._progressed()
        return outputs

    @property
    def effective(self) -> Effective:
        """What the session really runs with."""
        return self._session.effective

    def close(self) -> None:
        """Give the memory back."""
        self._session.close()


def _refused(error: EdgepackError) -> RequestError:
    why = f": {error.why}" if error.why else ""
    return RequestError(400, f"{error.what}{why}", error.reason)


def _zeros(manifest: Manifest) -> dict[str, Array]:
    """Return inputs of the right kind, each dynamic axis of size 1."""
    return {
        spec.name: np.zeros([max(size, 1) for size in spec.shape], spec.dtype)
        for spec in manifest.inputs
    }
