"""Answers what another runner shows, for nobody, and holds the answers against that one's.

Each model prepares the same picture in its own way and its answer is read by its own manifest; then
both are compared by the rule of their task. The two take turns with the box: after each sample
this one rests for as long as it worked.
"""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.decoders import Detector, Undecoded
from edgepack.errors import EdgepackError
from edgepack.manifest import Manifest
from edgepack_agent.runner.interface import DecodedImage, EncodedImage
from edgepack_agent.runner.samples import Hello, Shown, receive
from edgepack_targets.pipeline.agreement import alike
from edgepack_targets.pipeline.postprocess import decode
from edgepack_targets.pipeline.preprocess import as_image, image_tensor, read_image

__all__ = ["Comparison", "why_not"]

log = logging.getLogger(__name__)
Array = NDArray[Any]
Aside = Callable[[Mapping[str, Array]], tuple[dict[str, Array], float]]
"""Gives outputs for tensors, and the milliseconds that took."""
REMEMBERED = 10_000
"""Latencies that are compared, the last ones."""
LONGEST_REST_S = 10.0


class _OtherInputError(Exception):
    """This input means something else to this model, or nothing."""


class Comparison:
    """What has come of comparing a model with another one.

    Args:
        manifest: Of the model that is compared.
        aside: Runs it.

    Attributes:
        begun: Whether anything was to be compared yet.
    """

    def __init__(self, manifest: Manifest, aside: Aside) -> None:
        self._manifest, self._aside = manifest, aside
        self._channel: socket.socket | None = None
        self.begun = False
        self._lock = threading.Lock()
        self._agreement, self._samples, self._dropped, self._skipped = 0.0, 0, 0, 0
        self._took: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._reason = ""

    def follow(self, channel: socket.socket) -> None:
        """Answer what is shown over CHANNEL from now on; what was seen before still counts."""
        self.stop()
        self._channel, self.begun = channel, True
        threading.Thread(target=self._follow, args=(channel,), name="shadow", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        channel, self._channel = self._channel, None
        if channel is not None:
            try:
                channel.shutdown(socket.SHUT_RDWR)
            except OSError:
                log.debug("the other is gone already")

    def describe(self) -> dict[str, Any]:
        """Return what has come of it: see `core.shadow`."""
        with self._lock:
            mean = self._agreement / self._samples if self._samples else None
            before, after = np.array(self._took).T if self._took else (None, None)
            return {
                "samples": self._samples,
                "agreement": None if mean is None else round(mean, 4),
                "before_ms": _p95(before),
                "after_ms": _p95(after),
                "dropped": self._dropped + self._skipped,
                "reason": self._reason,
            }

    def _follow(self, channel: socket.socket) -> None:
        with channel:
            try:
                hello = receive(channel)
                if isinstance(hello, Hello):
                    self._reason = why_not(hello.manifest, self._manifest)
                    self._answer_all(channel, hello.manifest)
            except (OSError, EdgepackError) as error:
                log.debug("nothing more is shown: %s", error)

    def _answer_all(self, channel: socket.socket, other: Manifest) -> None:
        while not self._reason and isinstance(shown := receive(channel), Shown):
            begun = time.monotonic()
            self._compare(other, shown)
            time.sleep(min(time.monotonic() - begun, LONGEST_REST_S))
            channel.sendall(b"\0")

    def _compare(self, other: Manifest, shown: Shown) -> None:
        try:
            agreement, ms = self._agree(other, shown)
        except _OtherInputError:
            with self._lock:
                self._skipped += 1
                self._dropped += shown.dropped
            return
        with self._lock:
            self._samples += 1
            self._agreement += agreement
            self._dropped += shown.dropped
            if ms is not None:
                self._took.append((shown.ms, ms))

    def _agree(self, other: Manifest, shown: Shown) -> tuple[float, float | None]:
        """Return how far both agree, and how long this one took; None: it gave no answer."""
        tensors, size = _prepared(other, self._manifest, shown)
        try:
            theirs = decode(other, shown.outputs, size)
        except EdgepackError as error:
            raise _OtherInputError from error
        try:
            outputs, ms = self._aside(tensors)
        except Exception as error:  # noqa: BLE001 - the other one answered: no answer is another one
            log.debug("no answer: %s", error)
            return 0.0, None
        try:
            return alike(theirs, decode(self._manifest, outputs, size)), ms
        except EdgepackError:
            return 0.0, ms


def why_not(before: Manifest, after: Manifest) -> str:
    """Return why the answers of the models of BEFORE and AFTER cannot be compared, as a code.

    `other_task`: they answer different questions. `other_outputs`: raw ones, of other names or
    shapes. `other_inputs`: they are not asked in the same way. Nothing: they can be compared.
    """
    if _kind(before) != _kind(after):
        return "other_task"
    raw = isinstance(after.postprocess, Undecoded | None)
    if raw and _shapes(before.outputs) != _shapes(after.outputs):
        return "other_outputs"
    same = before.preprocess == after.preprocess and _shapes(before.inputs) == _shapes(after.inputs)
    return "" if same or (_looks(before) and _looks(after)) else "other_inputs"


def _kind(manifest: Manifest) -> str:
    rule = manifest.postprocess
    if isinstance(rule, Detector):
        return "detect"
    return "raw" if isinstance(rule, Undecoded | None) else type(rule).__name__


def _shapes(specs: Any) -> list[tuple[str, tuple[int, ...], str]]:
    return [(spec.name, spec.shape, spec.dtype) for spec in specs]


def _looks(manifest: Manifest) -> bool:
    """Say whether the model is asked with one picture and nothing else."""
    return manifest.preprocess is not None and len(manifest.inputs) == 1


def _prepared(
    other: Manifest, own: Manifest, shown: Shown
) -> tuple[dict[str, Array], tuple[int, int] | None]:
    """Return the tensors for the model of OWN, and the size of the picture if there is one.

    Raises:
        _OtherInputError: a tensor was made for the model of OTHER and means something else here.
    """
    same = other.preprocess == own.preprocess and _shapes(other.inputs) == _shapes(own.inputs)
    tensors: dict[str, Array] = {}
    size: tuple[int, int] | None = None
    for name, value in shown.inputs.items():
        if isinstance(value, EncodedImage | DecodedImage):
            data = value.data if isinstance(value, EncodedImage) else value.pixels
            image = read_image(data) if isinstance(data, bytes) else as_image(data)
            found, tensors_of = image_tensor(own, image)
            tensors[found], size = tensors_of, image.size
        elif same:
            tensors[name] = value
        else:
            raise _OtherInputError
    return tensors, size


def _p95(values: Array | None) -> float | None:
    return None if values is None else round(float(np.quantile(values, 0.95)), 4)
