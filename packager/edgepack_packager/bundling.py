"""Write a proven artefact as a bundle, with its report beside it. Judges nothing."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import durable
from edgepack.bundle import BundleInfo, write_bundle
from edgepack.errors import UsageError
from edgepack.manifest import Manifest
from edgepack_packager.adapters.datasets import write_npz
from edgepack_packager.adapters.proof import Observation, Prover
from edgepack_packager.core.manifest import Artefact, complete
from edgepack_packager.core.proof import compare, golden_cosine, golden_picks
from edgepack_packager.core.recipe import Recipe
from edgepack_packager.core.report import Score

__all__ = ["Bundler", "host_facts", "write_text"]


class Bundler:
    """Writes the bundles of one build.

    Args:
        recipe: What was asked for.
        prover: Whose samples become golden vectors.
        work: Temporary directory of the build.
        out_dir: Where bundles go.
        key: Signs them; None: they stay unsigned.
    """

    def __init__(
        self,
        recipe: Recipe,
        prover: Prover,
        work: Path,
        out_dir: Path,
        key: ec.EllipticCurvePrivateKey | None,
    ) -> None:
        self._recipe, self._prover, self._work = recipe, prover, work
        self._out_dir, self._key = out_dir, key

    def complete(
        self, manifest: Manifest, seen: Observation, score: Score | None, main: str
    ) -> Manifest:
        """Return the drafted MANIFEST with what running the artefact showed."""
        picks = golden_picks(len(seen.answers[main]))
        exported, golden = self._prover.reference.exported[main][picks], seen.answers[main][picks]
        distance = 1 - compare({main: exported}, {main: golden}).cosine
        return complete(
            manifest,
            samples=len(picks),
            min_cosine=golden_cosine(distance),
            metrics=self._metrics(score),
        )

    def _metrics(self, score: Score | None) -> dict[str, Any] | None:
        evaluation = self._prover.reference.evaluation
        if score is None or evaluation is None:
            return None
        return asdict(score) | {
            "drop": score.drop, "dataset_digest": evaluation.digest, "limit": self._recipe.max_drop,
        }  # fmt: skip

    def write(
        self, manifest: Manifest, model_dir: Path, seen: Observation, artefact: Artefact
    ) -> BundleInfo:
        """Write the bundle of ARTEFACT, whose files are in MODEL_DIR, under its final name."""
        desk = self._work / f"bundle-{artefact.variant.target}-{artefact.variant.precision}"
        desk.mkdir()
        picks = golden_picks(len(next(iter(seen.answers.values()))))
        samples = {n: array[picks] for n, array in self._prover.reference.samples.items()}
        answers = {n: array[picks] for n, array in seen.answers.items()}
        files = {f"model/{path.name}": path for path in sorted(model_dir.iterdir())}
        files[manifest.golden.inputs] = write_npz(desk / "inputs.npz", samples)
        files[manifest.golden.outputs] = write_npz(desk / "outputs.npz", answers)
        if manifest.labels:
            labels = desk / "labels.txt"
            labels.write_text("\n".join(manifest.labels) + "\n")
            files["labels.txt"] = labels
        return write_bundle(self._out_dir, manifest, files, key=self._key)


def host_facts() -> dict[str, Any]:
    """Return what measurements on this host depend on."""
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()}


def write_text(path: Path, text: str) -> None:
    """Write a report to PATH, all or nothing.

    Raises:
        UsageError: PATH cannot be written.
    """
    try:
        durable.write_file(path, text.encode())
    except OSError as error:
        raise UsageError(
            f"cannot write {path}", why=error.strerror or str(error), reason="unwritable"
        ) from error


def as_json(document: dict[str, Any]) -> str:
    """Return DOCUMENT as a person reads JSON."""
    return json.dumps(document, indent=2) + "\n"
