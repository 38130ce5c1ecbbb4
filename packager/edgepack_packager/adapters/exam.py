"""An acceptance exam: labelled samples in an `.npz`, read once to refuse a useless one."""

from dataclasses import dataclass
from pathlib import Path

from edgepack.errors import UsageError
from edgepack.manifest import Manifest
from edgepack.trust import MAX_EXAM_BYTES
from edgepack_targets.pipeline.npz import LABELS, read_npz

__all__ = ["Exam", "read_exam"]

MAX_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Exam:
    """The file's bytes as they will be signed, and how many samples it holds."""

    data: bytes
    samples: int


def read_exam(path: Path, manifest: Manifest) -> Exam:
    """Return the exam in PATH for models like the one of MANIFEST, read as a device reads it.

    Raises:
        UsageError: it cannot be read, is larger than devices take, has no integer `labels`, not
            one array per public input, wrong shapes or types, or more than 64 samples.
    """
    arrays = read_npz(
        path, manifest.inputs, what="exam", labels=True,
        max_samples=MAX_SAMPLES, max_bytes=MAX_EXAM_BYTES,
    )  # fmt: skip
    data = path.read_bytes()
    if len(data) > MAX_EXAM_BYTES:
        raise UsageError(
            f"the exam file {path} has {len(data)} bytes, devices take {MAX_EXAM_BYTES}",
            fix="leave out samples",
            reason="bad_exam",
        )
    return Exam(data, len(arrays[LABELS]))
