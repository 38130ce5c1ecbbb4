"""What is put to the test by the conformance suite, and what its checks share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import EdgepackError
from edgepack.manifest import Manifest
from edgepack_targets import registry
from edgepack_targets.binding import native_layout
from edgepack_targets.interface import MODEL_FILES, Quantization, Session, Target
from edgepack_targets.pipeline.feed import run_samples

__all__ = ["Check", "Subject", "files", "refused", "same_answers", "same_models", "size"]

Array = NDArray[Any]
INT8 = Quantization("int8")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is put to the test."""

    target: Target
    distribution: str
    """Of the runtime, whose version the target must report."""
    model_dir: Path
    """An fp32 model of at least 100,000 weights, as `convert` wrote it."""
    manifest: Manifest
    """Its manifest; bindings and execution precision must be right, files need not be."""
    samples: Mapping[str, Array]
    """At least 32 inputs by public name, first axis = samples."""
    expected: Mapping[str, Array]
    """What the source model answers to them."""
    calibration: Mapping[str, Array]
    """By public name, in public layout."""
    base_dir: Path | None = None
    """For a target that is built from another one's model: that model, in fp32."""

    def load(self, manifest: Manifest | None = None, model_dir: Path | None = None) -> Session:
        """Return a session on one thread."""
        where = model_dir or self.model_dir
        return self.target.load(where, manifest or self.manifest, threads=1)

    def first(self) -> dict[str, Array]:
        """Return the first sample with a batch axis of 1."""
        return {name: array[:1] for name, array in self.samples.items()}

    def native_calibration(self) -> dict[str, Array]:
        """Return the calibration samples as `Target.quantize` takes them."""
        return {
            spec.binding.native_name: native_layout(spec, self.calibration[spec.name])
            for spec in self.manifest.inputs
        }

    def make(self, out_dir: Path, change: Callable[[Target, Path, Path], Any]) -> Any:
        """Write the model to OUT_DIR after CHANGE(target, from, to); return what it gave.

        A target that is built from another one's model is changed there and converted.
        """
        base = self.target.capability().built_from
        if not base:
            return change(self.target, self.model_dir, out_dir)
        assert self.base_dir is not None, f"give the subject the model of target {base}"
        with TemporaryDirectory(prefix="edgepack-conformance-") as name:
            done = change(registry.find(base), self.base_dir, Path(name))
            source = Path(name) / MODEL_FILES[base][0]
            self.target.convert(source, self.target.capability().sources[0], out_dir)
        return done

    def quantize(
        self,
        out_dir: Path,
        calibration: Mapping[str, Array] | None = None,
        how: Quantization = INT8,
    ) -> Any:
        """Write the model as HOW says, int8 by default, to OUT_DIR; return what was done."""
        given = self.native_calibration() if calibration is None else calibration
        return self.make(out_dir, lambda target, old, new: target.quantize(old, new, how, given))


Check = Callable[[Subject, Path], None]


def refused(kind: type[EdgepackError], what: str, call: Callable[[], object]) -> EdgepackError:
    """Return the error that CALL raises; it must be a KIND."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what} was accepted")


def same_models(subject: Subject, one: Path, other: Path) -> None:
    """Assert that both directories hold the same bytes; if the format cannot, the same answers."""
    first, second = files(one), files(other)
    assert first.keys() == second.keys(), "other files"
    if subject.target.capability().same_bytes:
        assert first == second, "other bytes"
    else:
        same_answers(subject, one, other)


def same_answers(subject: Subject, one: Path, other: Path) -> None:
    """Assert that the models in both directories give the same bits."""
    answers = []
    for where in (one, other):
        session = subject.load(model_dir=where)
        answers.append(run_samples(session, subject.manifest, subject.samples))
        session.close()
    for name, array in answers[0].items():
        assert np.array_equal(array, answers[1][name]), f"{name} differs"


def files(directory: Path) -> dict[str, bytes]:
    """Return what is in the files of DIRECTORY by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def size(directory: Path) -> int:
    """Return the bytes of all files in DIRECTORY."""
    return sum(len(data) for data in files(directory).values())
