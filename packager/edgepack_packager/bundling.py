"""Write a proven artefact as a bundle, with its report beside it. Judges nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import canonical, durable
from edgepack.bundle import write_bundle
from edgepack.errors import UsageError
from edgepack.manifest import Manifest
from edgepack.oci import MLBOM, PROVENANCE, README
from edgepack_packager.adapters.datasets import write_npz
from edgepack_packager.adapters.emit import emit
from edgepack_packager.core.card_page import card_page
from edgepack_packager.core.emit import emission
from edgepack_packager.core.manifest import complete
from edgepack_packager.core.mlbom import mlbom
from edgepack_packager.core.proof import compare, golden_cosine, golden_picks
from edgepack_packager.core.provenance import provenance
from edgepack_packager.core.recipe import Recipe
from edgepack_packager.core.report import About, Built, Score, report_document
from edgepack_targets.machine import describe_machine

if TYPE_CHECKING:
    from edgepack_packager.adapters.proof import Observation, Prover

__all__ = ["Bundler"]


class Bundler:
    """Writes the bundles of one build.

    Args:
        recipe: What was asked for.
        prover: Whose samples become golden vectors.
        work: Temporary directory of the build.
        out_dir: Where bundles go.
        key: Signs them; None: they stay unsigned.
        emit: Servers that each bundle is also written for.
        about: What all variants have in common, for the report.
        warnings: Of the build so far; read when a report is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        prover: Prover,
        work: Path,
        out_dir: Path,
        key: ec.EllipticCurvePrivateKey | None,
        *,
        emit: Sequence[str],
        about: About,
        warnings: list[str],
    ) -> None:
        self._recipe, self._prover, self._work = recipe, prover, work
        self._out_dir, self._key = out_dir, key
        self._emit, self._about, self._warnings = tuple(emit), about, warnings

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

    def ship(self, built: Built, manifest: Manifest, model_dir: Path, seen: Observation) -> Built:
        """Write the bundle of the model in MODEL_DIR and what lies beside it, all or nothing.

        Raises:
            UsageError: something cannot be written.
            UnsupportedError: a server that was named cannot take this model.
        """
        for kind in self._emit:
            emission(kind, manifest)
        info = write_bundle(
            self._out_dir, manifest, self._files(manifest, model_dir, seen), key=self._key
        )
        built = replace(built, path=str(info.path), digest=info.digest, size_bytes=info.size_bytes)
        folders: list[Path] = []
        try:
            for kind in self._emit:
                folders.append(emit(kind, info.manifest, model_dir, self._out_dir))  # noqa: PERF401
            self._report(built, info.path)
        except BaseException:
            info.path.unlink(missing_ok=True)
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return built

    def _report(self, built: Built, bundle: Path) -> None:
        document = report_document(
            built, host=describe_machine(), warnings=self._warnings, about=self._about
        )
        path = bundle.with_suffix(".report.json")
        try:
            durable.write_file(path, (json.dumps(document, indent=2) + "\n").encode())
        except OSError as error:
            raise UsageError(
                f"cannot write {path}", why=error.strerror or str(error), reason="unwritable"
            ) from error

    def _files(self, manifest: Manifest, model_dir: Path, seen: Observation) -> dict[str, Path]:
        desk = Path(tempfile.mkdtemp(prefix="bundle-", dir=self._work))
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
        return files | self._documents(manifest, desk)

    def _documents(self, manifest: Manifest, desk: Path) -> dict[str, Path]:
        """Write where the model comes from and what it is made of."""
        builder = version("edgepack")
        contents = {
            PROVENANCE: canonical.dumps(provenance(manifest, self._recipe, builder)),
            MLBOM: canonical.dumps(mlbom(manifest, builder)),
            README: card_page(manifest).encode(),
        }
        files = {path: desk / PurePosixPath(path).name for path in contents}
        for path, content in contents.items():
            files[path].write_bytes(content)
        return files
