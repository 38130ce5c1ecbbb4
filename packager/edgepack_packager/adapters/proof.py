"""Prove an artefact: run it in the device's runtime, compare it with its source, score it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.manifest import Manifest, write_manifest
from edgepack_packager.adapters.datasets import Dataset, load_arrays, write_npz
from edgepack_packager.adapters.steps import Steps
from edgepack_packager.core.proof import Measured, Parity, compare
from edgepack_packager.core.report import Score

__all__ = ["Observation", "Prover", "Reference"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Reference:
    """The samples of a proof and what the source framework answers to them."""

    samples: Arrays
    answers: Arrays
    evaluation: Dataset | None

    @property
    def largest(self) -> float:
        """Largest absolute answer."""
        return max(
            float(np.abs(a.astype(np.float64)).max(initial=0)) for a in self.answers.values()
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """What an artefact did in the device's runtime."""

    answers: Arrays
    parity: Parity
    measured: Measured
    effective: dict[str, Any]
    extra: dict[str, float]
    """`load`, `first` (ms) and `throughput` (samples per second)."""


class Prover:
    """Runs and scores artefacts against one reference.

    Args:
        steps: Where workers run.
        work: Temporary directory of the build.
        reference: What to compare with.
        metric: `top1`, `file.py:function` or `module:function`.
        output: The output that `top1` reads.
    """

    def __init__(
        self, steps: Steps, work: Path, reference: Reference, *, metric: str, output: str
    ) -> None:
        self._steps, self._work, self.reference = steps, work, reference
        self._metric, self._output = metric, output
        self._samples = write_npz(work / "samples.npz", reference.samples)
        self._answers = write_npz(work / "answers.npz", reference.answers)

    def observe(self, model_dir: Path, manifest: Manifest) -> Observation:
        """Run the model in MODEL_DIR on every sample, in a fresh process."""
        described = self._work / "manifest.json"
        described.write_bytes(write_manifest(manifest))
        args = {
            "model_dir": str(model_dir),
            "manifest": str(described),
            "samples": str(self._samples),
        }
        out, said = self._steps.fresh("host", "observe.observe", args)
        answers = load_arrays(out / "outputs.npz", "the runtime's answers")
        return Observation(
            answers=answers,
            parity=compare(self.reference.answers, answers),
            measured=Measured(
                said["p50"], said["p95"], manifest.target.disk_bytes, said["peak_rss_mb"]
            ),
            effective=said["effective"],
            extra={name: said[name] for name in ("load", "first", "throughput")},
        )

    def score(self, answers: Arrays | None = None) -> Score | None:
        """Return the metric of ANSWERS beside the source's own; None without evaluation data."""
        evaluation = self.reference.evaluation
        if evaluation is None:
            return None
        given = self._answers if answers is None else self._work / "scored.npz"
        if answers is not None:
            write_npz(given, answers)
        args = {
            "metric": self._metric,
            "output": self._output,
            "cwd": str(Path.cwd()),
            "answers": {"reference": str(self._answers), "this": str(given)},
            "labels": str(write_npz(self._work / "labels.npz", evaluation.labels)),
        }
        _, said = self._steps.fresh("host", "score.score", args)
        return Score(self._metric, said["reference"], said["this"], evaluation.count)
