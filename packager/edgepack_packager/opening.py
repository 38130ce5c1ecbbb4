"""Drive the first half of a build: compress the source, open it, ask it. Converts nothing.

What comes out is the interface that users of the model see and the answers that every artefact
is judged by.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.adapters.datasets import (
    Dataset,
    digest_of,
    load_arrays,
    read_dataset,
    synthetic,
    write_npz,
)
from edgepack_packager.adapters.proof import Reference
from edgepack_packager.adapters.source import OpenedSource, digest_tree
from edgepack_packager.adapters.steps import Done, Steps
from edgepack_packager.core.binding import Public
from edgepack_packager.core.calibration import calibration_warnings
from edgepack_packager.core.compression import supported
from edgepack_packager.core.manifest import Interface, interface_of
from edgepack_packager.core.plan import HOST, SourceRoute
from edgepack_packager.core.prefill import prefilled
from edgepack_packager.core.preflight import (
    Probe,
    altered_samples,
    check_folders,
    check_labels,
    preparation_warning,
)
from edgepack_packager.core.recipe import Recipe
from edgepack_packager.core.source import SourceKind

__all__ = ["Opened", "Opener", "identified"]

FEW_SAMPLES = 32
PARITY_SAMPLES = 64
ANNOTATED = ("onnx", "tflite", "openvino")
"""Kinds of source whose files say something about themselves."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A source ready to be converted."""

    done: Done
    """The opening step."""
    face: Interface
    reference: Reference
    calibration: Dataset | None
    compressed: Done | None
    recipe: Recipe
    """With what the source says about itself where the user said nothing."""

    @property
    def precision(self) -> str:
        """The precision that the source has already."""
        return str(self.done.result.get("precision", "fp32"))

    @property
    def open_shapes(self) -> dict[str, list[int]]:
        """The shapes of all inputs, by native name, if one of them has a dynamic batch."""
        shapes = {one["key"]: one["shape"] for one in self.done.result["inputs"]}
        return shapes if any(min(shape, default=1) < 0 for shape in shapes.values()) else {}

    @property
    def compression(self) -> list[dict[str, Any]]:
        """What every compress step says it did."""
        return list(self.compressed.result["applied"]) if self.compressed else []


class Opener:
    """Opens one source.

    Args:
        source: What to build from.
        route: How its kind is opened.
        recipe: What was asked for.
        steps: Where workers run.
        work: Temporary directory of the build.
        warn: Told what looks wrong and stops nothing.
    """

    def __init__(
        self,
        source: OpenedSource,
        route: SourceRoute,
        recipe: Recipe,
        steps: Steps,
        work: Path,
        warn: Callable[[str], None],
    ) -> None:
        self._source, self._route, self._recipe = source, route, recipe
        self._steps, self._work, self._warn = steps, work, warn

    def open(self, calibration: Path | None, evaluate: Path | None, train: Path | None) -> Opened:
        """Return the opened source with its data checked against it.

        Raises:
            EdgepackError: the source, the data or a compress step is no good.
        """
        compressed = self._compress(train)
        converted = self._compressed(compressed) if compressed else self._source
        done = self._run(self._route.opening, converted, compressed)
        _check_tensors(done)
        inputs, outputs = _publics(done, "inputs"), _publics(done, "outputs")
        self._recipe = self._filled(inputs, outputs)
        calibrating = self._dataset(calibration, inputs, "calibration data")
        reference = self._refer(inputs, calibrating, evaluate, converted, compressed)
        if calibrating:
            seen = reference.evaluation.inputs if reference.evaluation else None
            for note in calibration_warnings(inputs, calibrating.inputs, seen):
                self._warn(note)
        face = interface_of(
            inputs, outputs, self._recipe, normalised=_sums_to_one(reference, outputs)
        )
        self._check_evaluation(reference, face)
        return Opened(done, face, reference, calibrating, compressed, self._recipe)

    def refer(self, opened: Opened, holdout: Path) -> Reference:
        """Ask the source framework about labelled samples that OPENED does not know yet."""
        before = opened.compressed
        converted = self._compressed(before) if before else self._source
        reference = self._refer(opened.face.inputs, None, holdout, converted, before)
        self._check_evaluation(reference, opened.face)
        return reference

    def _filled(self, inputs: tuple[Public, ...], outputs: tuple[Public, ...]) -> Recipe:
        """Return the recipe with what the source's own metadata says."""
        kind = self._source.kind.name
        if kind not in ANNOTATED:
            return self._recipe
        args = {"kind": kind, "source": str(self._source.path)}
        done = self._steps.run(
            HOST, "convert.annotations", args, facts=args | {"source": self._source.sha256}
        )
        card, notes = prefilled(self._recipe.card, done.result["annotations"], inputs, outputs)
        for note in notes:
            self._warn(note)
        return replace(self._recipe, card=card)

    # -- steps

    def _run(self, step: Any, source: OpenedSource, before: Done | None, **more: Any) -> Done:
        """Run a step that reads SOURCE; MORE is (value, digest) by argument name."""
        args = _arguments(source, self._recipe)
        facts = args | {"source": source.sha256, "weights": None}
        return self._steps.run(
            step.toolchain,
            step.function,
            args | {name: value for name, (value, _) in more.items()},
            facts=facts | {name: digest for name, (_, digest) in more.items()},
            parents=[before] if before else [],
        )

    def _compress(self, train: Path | None) -> Done | None:
        """Prune, cluster, factorise, distil or train the source, as the recipe says."""
        steps = self._recipe.compression
        refusals = [no for no in (supported(self._source.kind.name, step) for step in steps) if no]
        if refusals:
            raise refusals[0]
        if not steps or self._route.compress is None:
            return None
        settings = [step.as_dict() for step in steps]
        code = [_digest_file(Path(name)) for step in steps for name in step.files]
        data = digest_of(load_arrays(train, "training data")) if train else None
        return self._run(
            self._route.compress,
            self._source,
            None,
            steps=(settings, [settings, code]),
            train=(str(train.resolve()) if train else None, data),
            seed=(self._recipe.seed, self._recipe.seed),
        )

    def _compressed(self, done: Done) -> OpenedSource:
        """Return the source that the compress step left in the place of the first one."""
        path = done.out / done.result["file"]
        kind = SourceKind(done.result["kind"], "compressed model")
        return replace(
            self._source, path=path, kind=kind, sha256=digest_tree(path), factory=None, weights=None
        )

    # -- data and answers

    def _dataset(self, path: Path | None, inputs: tuple[Public, ...], what: str) -> Dataset | None:
        if path is None:
            return None
        found = read_dataset(
            path, inputs, self._recipe.card, what=what, labelled=what == "evaluation data"
        )
        if found.count < FEW_SAMPLES:
            self._warn(f"{what} has only {found.count} samples; {FEW_SAMPLES} or more are better")
        return found

    def _refer(
        self,
        inputs: tuple[Public, ...],
        calibrating: Dataset | None,
        evaluate: Path | None,
        converted: OpenedSource,
        compressed: Done | None,
    ) -> Reference:
        """Ask the source framework about the evaluation, calibration or made-up samples."""
        evaluation = self._dataset(evaluate, inputs, "evaluation data")
        known = evaluation or calibrating
        samples = dict(known.inputs) if known else synthetic(inputs, self._recipe.seed)
        if evaluation is None:
            samples = {name: array[:PARITY_SAMPLES] for name, array in samples.items()}
        count = len(next(iter(samples.values())))
        probed = evaluation is not None and self._recipe.metric == "top1"
        probes = altered_samples(inputs, samples) if probed else []
        asked = {
            name: np.concatenate([array, *(probe.inputs[name] for probe in probes)])
            for name, array in samples.items()
        }
        path = write_npz(self._work / "reference-samples.npz", asked)
        given = {"samples": (str(path), digest_of(asked))}
        whole = self._run(self._route.reference, self._source, None, **given)
        answers = self._answers(whole, count)
        exported = answers
        if compressed:
            done = self._run(self._route.reference, converted, compressed, **given)
            exported = self._answers(done, count)
        return Reference(samples, answers, evaluation, exported, _probed(probes, whole, count))

    def _check_evaluation(self, reference: Reference, face: Interface) -> None:
        """Refuse labels that no class has; warn about pictures that look badly prepared."""
        evaluation = reference.evaluation
        if evaluation is None or self._recipe.metric != "top1":
            return
        labels = evaluation.labels.get("labels")
        if labels is None:
            raise UsageError(
                "evaluation data has no array called `labels`",
                why=f"top-1 reads it; there are {', '.join(sorted(evaluation.labels))}",
                fix="call it `labels`, or give --metric file.py:function",
                reason="no_labels",
            )
        if evaluation.path.is_dir() and not face.labels:
            check_folders(labels, face.classes)
        check_labels(labels, evaluation.count, face.classes)
        main = face.main.name
        probes = [(probe, answers[main]) for probe, answers in reference.probes]
        note = preparation_warning(probes, reference.answers[main], labels)
        if note:
            self._warn(note)

    def _answers(self, done: Done, count: int) -> dict[str, Any]:
        """Return the answers to the first COUNT samples, all finite."""
        told = load_arrays(done.out / "outputs.npz", "the source's answers")
        answers = {name: array[:count] for name, array in told.items()}
        broken = [name for name, array in answers.items() if not np.isfinite(array).all()]
        if broken:
            raise UsageError(
                f"the source model answers NaN or infinity in {', '.join(broken)}",
                fix="check its weights and the samples",
                reason="source_nan",
            )
        return answers


def identified(
    source: OpenedSource, route: SourceRoute, recipe: Recipe, steps: Steps
) -> OpenedSource:
    """Return SOURCE with a digest that covers what its code makes; a file's own is enough.

    The code runs in every build, because what it reads is unknown: it may load weights itself.
    """
    if source.factory is None:
        return source
    args = _arguments(source, recipe)
    _, said = steps.fresh(route.opening.toolchain, "torch_source.fingerprint", args)
    whole = hashlib.sha256(f"{source.sha256}\0{said['sha256']}".encode()).hexdigest()
    return replace(source, sha256=whole)


def _arguments(source: OpenedSource, recipe: Recipe) -> dict[str, Any]:
    """Return what every step on SOURCE is given."""
    return {
        "source": str(source.path),
        "kind": source.kind.name,
        "shapes": {name: list(shape) for name, shape in recipe.shapes.items()},
        "signature": recipe.signature,
        "factory": source.factory,
        "weights": str(source.weights) if source.weights else None,
        "trust": source.trust,
    }


def _probed(
    probes: list[Probe], done: Done, count: int
) -> tuple[tuple[Probe, dict[str, Any]], ...]:
    """Return PROBES with their answers, which follow those to the COUNT samples themselves."""
    told = load_arrays(done.out / "outputs.npz", "the source's answers")
    starts = [count + index * len(probe.rows) for index, probe in enumerate(probes)]
    return tuple(
        (probe, {name: array[at : at + len(probe.rows)] for name, array in told.items()})
        for probe, at in zip(probes, starts, strict=True)
    )


def _check_tensors(opened: Done) -> None:
    if not opened.result["inputs"]:
        raise UnsupportedError(
            "the model has no inputs",
            fix="export it with its inputs, not with a sample in their place",
            reason="no_inputs",
        )
    for tensor in (*opened.result["inputs"], *opened.result["outputs"]):
        if tensor["shape"][:1] not in ([1], [-1]):
            raise UnsupportedError(
                f"tensor {tensor['name']} {tensor['shape']} has no batch axis of 1",
                why="samples are fed one at a time",
                fix="give the model a first axis for the batch",
                reason="no_batch_axis",
            )


def _publics(opened: Done, side: str) -> tuple[Public, ...]:
    return tuple(
        Public(t["name"], t["key"], tuple(t["shape"]), t["dtype"]) for t in opened.result[side]
    )


def _sums_to_one(reference: Reference, outputs: tuple[Public, ...]) -> bool:
    answers = reference.exported
    rows = answers[outputs[0].name].reshape(len(next(iter(answers.values()))), -1)
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3))


def _digest_file(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=str(error), reason="no_file") from error
