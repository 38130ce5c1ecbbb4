"""What a bundle says about itself, from what was asked and what was found. Pure.

The manifest is drafted before the artefact is run, because the device's runtime is given it,
and completed with what the run showed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import msgspec

from edgepack.decoders import OUTPUT_FIELDS, Embed, Postprocess, Softmax
from edgepack.errors import UsageError
from edgepack.manifest import (
    Agreement,
    Calibration,
    FileEntry,
    Golden,
    Manifest,
    Metrics,
    Preprocess,
    Provenance,
    Target,
    TensorSpec,
)
from edgepack_packager.core.binding import Public
from edgepack_packager.core.images import preprocess_of, with_layout
from edgepack_packager.core.recipe import ModelCard, Recipe, Task, Variant

__all__ = [
    "Artefact",
    "Interface",
    "complete",
    "draft",
    "interface_of",
    "stated_facts",
]

AGREEMENT: dict[str, Literal["top1", "f1", "miou"]] = {
    "classify": "top1", "detect": "f1", "segment": "miou",
}  # fmt: skip
"""How answers are compared, by task; others by the cosine of their outputs."""
SHARE = {"detect": 0.9, "segment": 0.9}
"""A box or the edge of a region on the verge of a threshold is no other decision."""
GOLDEN = ("golden/inputs.npz", "golden/outputs.npz")


@dataclass(frozen=True, slots=True)
class Interface:
    """The model as its users see it: the same for every target."""

    inputs: tuple[Public, ...]
    outputs: tuple[Public, ...]
    task: Task
    main: Public
    """The output that decisions are read from."""
    preprocess: Preprocess | None = None
    postprocess: Postprocess | None = None
    labels: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Number of entries of the main output."""
        size = 1
        for axis in self.main.shape[1:]:
            size *= axis
        return size


@dataclass(frozen=True, slots=True)
class Artefact:
    """One converted model: how it is bound, and what made it."""

    variant: Variant
    runtime_version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileEntry, ...]
    source_sha256: str
    source_format: str
    steps: tuple[str, ...]
    tools: dict[str, str]
    applied: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    arch: tuple[str, ...] = ()
    """Machine names it runs on; empty: any."""
    cpu_features: tuple[str, ...] = ()

    @property
    def model_bytes(self) -> int:
        """Size of the model's files."""
        return sum(entry.size for entry in self.files)


def interface_of(
    inputs: Sequence[Public], outputs: Sequence[Public], recipe: Recipe, *, normalised: bool
) -> Interface:
    """Return the public interface of a model.

    Args:
        inputs: As the source names them.
        outputs: As the source names them.
        recipe: Says task, labels, pre- and postprocessing.
        normalised: Whether the main output already sums to 1 like probabilities.

    Raises:
        UsageError: what the recipe says does not fit the model.
    """
    card = recipe.card
    main = _main_output(outputs, card)
    guessed: Task = (
        "classify" if card.labels or (recipe.evaluated and recipe.metric == "top1") else "raw"
    )
    task = card.task or guessed
    face = Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        task=task,
        main=main,
        preprocess=preprocess_of(inputs, card),
        postprocess=card.postprocess,
        labels=card.labels,
    )
    return replace(face, postprocess=_answering(face, card, normalised=normalised))


def _answering(face: Interface, card: ModelCard, *, normalised: bool) -> Postprocess | None:
    """Return how outputs are read: as the recipe says, else as is usual for the task."""
    if face.task == "classify":
        _check_classes(face)
        return card.postprocess or Softmax(
            output=face.main.name,
            activation="none" if normalised else "softmax",
            top_k=min(5, face.classes),
        )
    if face.task == "embed":
        return card.postprocess or Embed(output=face.main.name)
    if card.postprocess is None and face.task in {"detect", "segment"}:
        raise UsageError(
            f"nothing says how the outputs of a model that should {face.task} are read",
            why=f"outputs are: {', '.join(f'{o.name} {list(o.shape)}' for o in face.outputs)}",
            fix="a recipe with `model: {postprocess: {decoder: ssd | yolo | mask, ...}}`, "
            "or --task raw",
            reason="no_decoder",
        )
    return _named(face, card.postprocess)


def _named(face: Interface, rule: Postprocess | None) -> Postprocess | None:
    """Return RULE with the outputs it names checked, and the main one where it names none."""
    if rule is None:
        return None
    known = {output.name for output in face.outputs}
    said = {field: getattr(rule, field) for field in OUTPUT_FIELDS if hasattr(rule, field)}
    unknown = sorted(name for name in said.values() if name and name not in known)
    if unknown:
        raise _unknown_output(unknown[0], face.outputs)
    whole = said.get("output") == ""
    return msgspec.structs.replace(rule, output=face.main.name) if whole else rule


def _main_output(outputs: Sequence[Public], card: ModelCard) -> Public:
    wanted = getattr(card.postprocess, "output", "") or getattr(card.postprocess, "boxes", "")
    named = [output for output in outputs if output.name == wanted]
    if wanted and not named:
        raise _unknown_output(wanted, outputs)
    return (named or list(outputs))[0]


def _unknown_output(wanted: str, outputs: Sequence[Public]) -> UsageError:
    return UsageError(
        f"postprocess names the output {wanted}, which is not there",
        fix=f"outputs are: {', '.join(o.name for o in outputs)}",
        reason="unknown_output",
    )


def _check_classes(face: Interface) -> None:
    if face.classes < 2:
        raise UsageError(
            f"output {face.main.name} {list(face.main.shape)} has no classes to choose from",
            fix="--task raw, or --metric file.py:function",
            reason="not_a_classifier",
        )
    if face.labels and len(face.labels) != face.classes:
        raise UsageError(
            f"there are {len(face.labels)} labels for {face.classes} classes",
            fix="one label per line, in the order of the output",
            reason="label_count",
        )


def draft(recipe: Recipe, face: Interface, artefact: Artefact) -> Manifest:
    """Return the manifest that the device's runtime is given to run ARTEFACT."""
    return Manifest(
        schema="edgepack.bundle/v1",
        name=recipe.name,
        version=recipe.version,
        build_id="",
        task=face.task,
        target=Target(
            runtime=cast("Any", artefact.variant.target),
            min_runtime=".".join(artefact.runtime_version.split(".")[:2]),
            precision=cast("Any", artefact.variant.precision),
            execution_precision="bf16" if artefact.variant.precision == "bf16" else "f32",
            arch=artefact.arch,
            cpu_features=artefact.cpu_features,
            disk_bytes=artefact.model_bytes,
        ),
        inputs=tuple(with_layout(spec, face.preprocess) for spec in artefact.inputs),
        outputs=artefact.outputs,
        agreement=Agreement(
            rule=AGREEMENT.get(face.task, "cosine"),
            output=face.main.name,
            min_share=SHARE.get(face.task, 1.0),
        ),
        golden=Golden(inputs=GOLDEN[0], outputs=GOLDEN[1], samples=0),
        provenance=Provenance(
            source_sha256=artefact.source_sha256,
            source_format=artefact.source_format,
            tools=artefact.tools,
            steps=artefact.steps,
        ),
        files=artefact.files,
        preprocess=face.preprocess,
        postprocess=face.postprocess,
        labels=face.labels,
        calibration=artefact.calibration,
        license=recipe.card.license,
    )


def stated_facts(recipe: Recipe, face: Interface) -> dict[str, Any]:
    """Return what a model file itself says about the model, where its format has a place for it."""
    said = {
        "name": recipe.name,
        "version": recipe.version,
        "task": face.task,
        "labels": list(face.labels),
        "preprocess": msgspec.to_builtins(face.preprocess) if face.preprocess else None,
        "inputs": [public.name for public in face.inputs],
        "outputs": [public.name for public in face.outputs],
        "license": recipe.card.license,
    }
    return {name: value for name, value in said.items() if value}


def complete(
    manifest: Manifest, *, samples: int, min_cosine: float, metrics: Mapping[str, Any] | None
) -> Manifest:
    """Return MANIFEST with what running the artefact showed."""
    return msgspec.structs.replace(
        manifest,
        golden=msgspec.structs.replace(manifest.golden, samples=samples),
        agreement=msgspec.structs.replace(manifest.agreement, min_cosine=min_cosine),
        metrics=Metrics(**metrics) if metrics else None,
    )
