"""A loaded model: answers inputs and images, proves itself, counts. Has no queue and no socket.

Everything here runs in the inference thread.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import EdgepackError
from edgepack.manifest import Manifest
from edgepack_agent.runner.interface import EncodedImage
from edgepack_agent.runner.protocol import RequestError
from edgepack_agent.runner.slot import Slot
from edgepack_agent.runner.statistics import Statistics
from edgepack_targets import registry
from edgepack_targets.interface import Effective, Session
from edgepack_targets.pipeline import golden
from edgepack_targets.pipeline.postprocess import Guess, classify
from edgepack_targets.pipeline.preprocess import image_tensor, read_image

__all__ = ["LoadedModel"]

Array = NDArray[Any]


class LoadedModel:
    """The model of a slot, loaded and warmed up; see `interface.Model`.

    Args:
        slot: A verified slot.
        threads: Of the runtime; None leaves it to the runtime.
        statistics: Where answers are counted.
        progressed: Called after every inference of a longer check.

    Raises:
        UnsupportedError: its runtime is missing, too old or of another precision.
        IntegrityError: the model is not the one that the manifest describes.
    """

    def __init__(
        self,
        slot: Slot,
        threads: int | None,
        statistics: Statistics,
        progressed: Callable[[], None],
    ) -> None:
        self._slot, self._statistics, self._progressed = slot, statistics, progressed
        target = registry.find(slot.manifest.target.runtime)
        self._session = target.load(slot.directory / "model", slot.manifest, threads=threads)
        self._session.run(_zeros(slot.manifest))

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

    def answer(self, inputs: Mapping[str, Array | EncodedImage]) -> dict[str, Array]:
        """Return the outputs for INPUTS, and count them.

        Raises:
            RequestError: 400; an image cannot be decoded.
        """
        return self._infer(inputs)[0]

    def look(self, image: bytes) -> dict[str, Any]:
        """Return what the model says of IMAGE: labels with scores, digest, milliseconds.

        Raises:
            RequestError: the image cannot be decoded, or the model takes none.
        """
        start = time.perf_counter()
        wanted = self.manifest.preprocess
        _, guesses = self._infer({wanted.input if wanted else "": EncodedImage(image)})
        top = [{"label": guess.label, "score": round(guess.score, 6)} for guess in guesses]
        ms = round((time.perf_counter() - start) * 1000, 3)
        return {"top": top, "digest": self.digest, "ms": ms}

    def _infer(
        self, inputs: Mapping[str, Array | EncodedImage]
    ) -> tuple[dict[str, Array], tuple[Guess, ...]]:
        tensors = {name: self._tensor(value) for name, value in inputs.items()}
        start = time.perf_counter()
        outputs = self._session.run(tensors)
        self._statistics.inferred((time.perf_counter() - start) * 1000)
        return outputs, self._decide(outputs)

    def _tensor(self, value: Array | EncodedImage) -> Array:
        if not isinstance(value, EncodedImage):
            return value
        try:
            return image_tensor(self.manifest, read_image(value.data))[1]
        except EdgepackError as error:
            why = f": {error.why}" if error.why else ""
            raise RequestError(400, f"{error.what}{why}", error.reason) from error

    def _decide(self, outputs: Mapping[str, Array]) -> tuple[Guess, ...]:
        """Return and count what a classifier says; nothing for other models."""
        rule = self.manifest.postprocess
        if rule is None or rule.decoder != "softmax":
            return ()
        try:
            guesses = classify(self.manifest, outputs)
        except EdgepackError as error:
            self._statistics.failed(error.reason)
            return ()
        self._statistics.decided(guesses[0].label, guesses[0].score)
        return guesses

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


def _zeros(manifest: Manifest) -> dict[str, Array]:
    """Return inputs of the right kind, each dynamic axis of size 1."""
    return {
        spec.name: np.zeros([max(size, 1) for size in spec.shape], spec.dtype)
        for spec in manifest.inputs
    }
