"""An acceptance exam: labelled samples in an `.npz`, read once to refuse a useless one."""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.errors import UsageError
from edgepack.manifest import Manifest, TensorSpec

__all__ = ["Exam", "read_exam"]

LABELS = "labels"
MAX_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Exam:
    """The file's bytes as they will be signed, and how many samples it holds."""

    data: bytes
    samples: int


def read_exam(path: Path, manifest: Manifest) -> Exam:
    """Return the exam in PATH for models like the one of MANIFEST.

    Raises:
        UsageError: it cannot be read, has no `labels`, not one array per public input, wrong
            shapes, or more than 64 samples.
    """
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _bad(path, str(error)) from error
    wanted = {LABELS, *(spec.name for spec in manifest.inputs)}
    if set(arrays) != wanted:
        raise _bad(path, f"it holds {sorted(arrays)}, the model needs {sorted(wanted)}")
    samples = len(arrays[LABELS]) if arrays[LABELS].ndim == 1 else 0
    if not 1 <= samples <= MAX_SAMPLES:
        raise _bad(path, f"`labels` must hold 1 to {MAX_SAMPLES} labels, one per sample")
    for spec in manifest.inputs:
        _check(path, spec, arrays[spec.name].shape, samples)
    return Exam(data, samples)


def _check(path: Path, spec: TensorSpec, shape: tuple[int, ...], samples: int) -> None:
    rest = zip(shape[1:], spec.shape[1:], strict=False)
    same = len(shape) == len(spec.shape) and all(want in {-1, got} for got, want in rest)
    if not same or shape[0] != samples:
        expected = (samples, *spec.shape[1:])
        raise _bad(path, f"{spec.name} has shape {list(shape)}, expected {list(expected)}")


def _bad(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not an exam for this model",
        why=why,
        fix="an .npz with one array per input (first axis: samples) and `labels`",
        reason="bad_exam",
    )
