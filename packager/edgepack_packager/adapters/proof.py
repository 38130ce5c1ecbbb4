"""Prove an artefact: run it in the device's runtime, compare it with its source, score it."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack import durable
from edgepack.errors import UsageError
from edgepack.manifest import Manifest, write_manifest
from edgepack_packager.adapters.datasets import Dataset, digest_of, load_arrays, write_npz
from edgepack_packager.adapters.steps import Done, Steps
from edgepack_packager.core.holdout import Paired, paired
from edgepack_packager.core.preflight import Probe
from edgepack_packager.core.proof import Measured, Parity, compare
from edgepack_packager.core.report import Score
from edgepack_targets.pipeline.similarity import top1

__all__ = ["Observation", "Prover", "Reference"]

Arrays = Mapping[str, NDArray[Any]]
BUILT_IN = "top1"


@dataclass(frozen=True, slots=True)
class Reference:
    """The samples of a proof and what the source framework answers to them."""

    samples: Arrays
    answers: Arrays
    evaluation: Dataset | None
    exported: Arrays
    """What the model answers that is really converted; differs after a compress step."""
    probes: tuple[tuple[Probe, Arrays], ...] = ()
    """Altered copies of some samples, with what the source answers to them."""

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
    cached: bool = False
    """Whether all this was measured in an earlier build."""


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
        self.samples_digest = digest_of(reference.samples)
        self._reference_digest = digest_of(reference.answers)

    def observe(self, done: Done, manifest: Manifest) -> Observation:
        """Run the model that the step DONE wrote on every sample, in a fresh process."""
        said_to_be = write_manifest(manifest)
        digest = hashlib.sha256(said_to_be).hexdigest()
        described = self._work / f"manifest-{digest[:16]}.json"
        if not described.is_file():
            # Variants that share a baseline describe it at the same time, one reads it already.
            durable.write_file(described, said_to_be)
        seen = self._steps.run(
            "host",
            "observe.observe",
            {"model_dir": str(done.out), "manifest": str(described), "samples": str(self._samples)},
            facts={"manifest": digest, "samples": self.samples_digest},
            parents=[done],
            alone=True,
        )
        said = seen.result
        answers = load_arrays(seen.out / "outputs.npz", "the runtime's answers")
        return Observation(
            answers=answers,
            parity=compare(self.reference.answers, answers),
            measured=Measured(
                said["p50"], said["p95"], manifest.target.disk_bytes, said["peak_rss_mb"]
            ),
            effective=said["effective"],
            extra={name: said[name] for name in ("load", "first", "throughput")},
            cached=seen.kept,
        )

    def score(self, answers: Arrays | None = None) -> Score | None:
        """Return the metric of ANSWERS beside the source's own; None without evaluation data.

        Args:
            answers: By output name; None: the source's own once more, to see that both agree.

        Raises:
            UsageError: the metric fails, or does not agree with itself.
        """
        evaluation = self.reference.evaluation
        if evaluation is None:
            return None
        this = self.reference.answers if answers is None else answers
        said = self._score(digest_of(this), this, evaluation)
        if answers is None and not math.isclose(said["reference"], said["this"], rel_tol=1e-9):
            raise UsageError(
                f"the metric {self._metric} gives two numbers for the same answers",
                why=f"{said['reference']:g}, then {said['this']:g}: what it says of a variant "
                "means nothing",
                fix="let it depend on answers and labels alone; seed what is random in it",
                reason="metric_unsteady",
            )
        return Score(self._metric, said["reference"], said["this"], evaluation.count)

    def pair(self, answers: Arrays) -> Paired | None:
        """Return on how many samples only the source, or only ANSWERS, are right.

        None without labels, and for a metric of the user's, which judges the whole set at once.
        """
        evaluation = self.reference.evaluation
        if evaluation is None or self._metric != BUILT_IN or "labels" not in evaluation.labels:
            return None
        before, after = (top1(one[self._output]) for one in (self.reference.answers, answers))
        return paired(before, after, evaluation.labels["labels"].reshape(-1))

    def _score(self, digest: str, answers: Arrays, evaluation: Dataset) -> dict[str, float]:
        given = write_npz(self._work / f"scored-{digest[:16]}.npz", answers)
        labels = write_npz(self._work / f"labels-{evaluation.digest[:16]}.npz", evaluation.labels)
        args = {
            "metric": self._metric,
            "output": self._output,
            "cwd": str(Path.cwd()),
            "answers": {"reference": str(self._answers), "this": str(given)},
            "labels": str(labels),
        }
        if self._metric != BUILT_IN:
            # A metric of the user's reads what it likes: an old number may no longer be true.
            return self._steps.fresh("host", "score.score", args)[1]
        facts = {"output": self._output, "this": digest, "reference": self._reference_digest}
        facts |= {"labels": evaluation.digest}
        return self._steps.run("host", "score.score", args, facts=facts).result
