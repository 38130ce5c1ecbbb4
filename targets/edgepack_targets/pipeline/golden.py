"""The two proofs on a device: golden vectors of a bundle, and the exam of a model line.

Golden: does this device reproduce what the host saw? Exam: is the model any good? Neither
decides what happens next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgepack.errors import IntegrityError
from edgepack.manifest import Manifest
from edgepack_targets.interface import Session
from edgepack_targets.pipeline.agreement import Verdict, agree
from edgepack_targets.pipeline.feed import run_samples
from edgepack_targets.pipeline.npz import LABELS, read_npz
from edgepack_targets.pipeline.similarity import top1

__all__ = ["MAX_EXAM", "ExamResult", "check_exam", "check_golden", "score"]

MAX_EXAM = 64
"""Samples of an exam at most: it runs on every device before every switch."""
MAX_EXAM_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ExamResult:
    """How many labelled samples a model got right."""

    score: float
    """Share of samples whose highest output is at the label, 0..1."""
    min_score: float
    samples: int
    passed: bool


def check_golden(session: Session, manifest: Manifest, slot_dir: Path) -> Verdict:
    """Compare what SESSION says to the golden inputs in SLOT_DIR with the golden outputs.

    Raises:
        IntegrityError: The number of golden samples is not the one the manifest says.
        UsageError: A golden file cannot be read or does not fit the manifest.
    """
    golden = manifest.golden
    inputs = read_npz(slot_dir / golden.inputs, manifest.inputs, what="golden")
    expected = read_npz(slot_dir / golden.outputs, manifest.outputs, what="golden")
    counts = {len(array) for array in (*inputs.values(), *expected.values())}
    if counts != {golden.samples}:
        raise IntegrityError(
            "the golden vectors are not those of the manifest",
            why=f"it says {golden.samples} samples, the files hold {sorted(counts)}",
            reason="bad_golden",
        )
    return agree(manifest, expected, run_samples(session, manifest, inputs))


def check_exam(
    session: Session, manifest: Manifest, exam_npz: Path, min_score: float
) -> ExamResult:
    """Let SESSION sit the exam in EXAM_NPZ: an array per public input, and `labels`.

    Raises:
        UsageError: The exam cannot be read or does not fit the model.
    """
    exam = read_npz(
        exam_npz, manifest.inputs, what="exam", labels=True,
        max_samples=MAX_EXAM, max_bytes=MAX_EXAM_BYTES,
    )  # fmt: skip
    labels = exam.pop(LABELS)
    reached = score(manifest, run_samples(session, manifest, exam), labels)
    return ExamResult(reached, min_score, len(labels), reached >= min_score)


def score(manifest: Manifest, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> float:
    """Return the share of samples of the agreement's output whose highest entry is the label."""
    return float((top1(outputs[manifest.agreement.output]) == labels).mean())
