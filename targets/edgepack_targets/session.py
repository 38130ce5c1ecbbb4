"""What all sessions share: binding, one call at a time, closing. Imports no runtime.

A runtime's session says only how to infer with native arrays. Calls from several threads are
safe and wait for each other: on the small CPUs that this is for, one inference on all threads
is faster than several side by side, and two of the three runtimes allow nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from edgepack.errors import IntegrityError, UnsupportedError
from edgepack.manifest import Manifest
from edgepack_targets.binding import Binding
from edgepack_targets.extras import meets
from edgepack_targets.interface import Effective, Placement

__all__ = [
    "BoundSession",
    "check_runtime",
    "no_device",
    "only_cpu",
    "only_f32",
    "unreadable",
    "unsupported_precision",
]

Array = NDArray[Any]


class BoundSession(ABC):
    """A session that speaks public tensors outside and native ones inside."""

    def __init__(self, binding: Binding, effective: Effective) -> None:
        self._binding, self._effective = binding, effective
        self._lock = Lock()
        self._open = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for INPUTS, both by public name; see `interface.Session`."""
        native = self._binding.to_native(inputs)
        with self._lock:
            if not self._open:
                raise RuntimeError("the session is closed")
            outputs = self._infer(native)
        return self._binding.to_public(outputs)

    @property
    def effective(self) -> Effective:
        """What the session really runs with."""
        return self._effective

    def close(self) -> None:
        """Give the memory back, after the call under way; harmless to call again."""
        with self._lock:
            if self._open:
                self._open = False
                self._release()

    @abstractmethod
    def _infer(self, native: dict[str, Array]) -> Mapping[str, Array]:
        """Return fresh native outputs for NATIVE inputs; called by one thread at a time."""

    @abstractmethod
    def _release(self) -> None:
        """Drop the runtime's objects."""


def check_runtime(manifest: Manifest, runtime: str, version: str) -> None:
    """Check that MANIFEST is for RUNTIME and that VERSION is new enough.

    Raises:
        UnsupportedError: It is for another runtime, or needs a newer one.
    """
    wanted = manifest.target
    if wanted.runtime != runtime:
        raise UnsupportedError(
            f"{manifest.release} is not for {runtime}",
            why=f"its manifest says {wanted.runtime}",
            reason="wrong_runtime",
        )
    if not meets(version, wanted.min_runtime):
        raise UnsupportedError(
            f"{runtime} {version} is too old for {manifest.release}",
            why=f"it needs {wanted.min_runtime} or newer",
            fix="update the runtime by the system's packages, or build for an older one",
            reason="runtime_too_old",
        )


def only_f32(manifest: Manifest) -> None:
    """Check that MANIFEST asks for f32, the only execution precision of some runtimes.

    Raises:
        UnsupportedError: It asks for another one.
    """
    if manifest.target.execution_precision != "f32":
        raise unsupported_precision(manifest, "f32")


def only_cpu(runtime: str, place: Placement) -> None:
    """Check that PLACE asks RUNTIME for the CPU, the only device that some runtimes have.

    Raises:
        UnsupportedError: It asks for another one.
    """
    if place.device not in {"CPU", "AUTO"}:
        raise no_device(runtime, place.device, ["CPU"])


def no_device(runtime: str, device: str, there: Iterable[str]) -> UnsupportedError:
    """Return the error for a DEVICE that RUNTIME cannot use here; THERE is what it can."""
    return UnsupportedError(
        f"{runtime} has no {device} here",
        why=f"it can use {', '.join(there)}",
        fix="check driver and rights, or change `device` in the agent's configuration",
        reason="no_device",
    )


def unsupported_precision(manifest: Manifest, effective: str) -> UnsupportedError:
    """Return the error for a precision that this machine does not execute."""
    return UnsupportedError(
        f"{manifest.release} cannot run in {manifest.target.execution_precision} here",
        why=f"{manifest.target.runtime} would run it in {effective} on this machine",
        fix="use a bundle whose execution precision this machine has",
        reason="wrong_precision",
    )


def unreadable(runtime: str, path: object, error: Exception) -> IntegrityError:
    """Return the error for a model file that RUNTIME cannot load."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return IntegrityError(
        f"{runtime} cannot load {path}", why=lines[-1].strip(), reason="model_unreadable"
    )
