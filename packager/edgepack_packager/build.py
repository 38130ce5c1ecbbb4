"""Drive a build: source, plan, steps, proof, bundle. Decides nothing that `core` can decide.

Each variant is all or nothing: it is proven before its bundle is written, under a temporary
name first. What fails for one variant does not touch the others.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from edgepack import durable
from edgepack.bundle import write_bundle
from edgepack.errors import EdgepackError, UnsupportedError, UsageError
from edgepack.manifest import Calibration, FileEntry, Manifest
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.datasets import (
    Dataset,
    digest_of,
    load_arrays,
    read_dataset,
    synthetic,
    write_npz,
)
from edgepack_packager.adapters.proof import Observation, Prover, Reference
from edgepack_packager.adapters.source import OpenedSource, digest_tree, open_source
from edgepack_packager.adapters.steps import Done, Steps
from edgepack_packager.adapters.worker import Interpreter, host_interpreter
from edgepack_packager.core.binding import Native, Public, bind
from edgepack_packager.core.manifest import Artefact, complete, draft, interface_of
from edgepack_packager.core.plan import HOST, Plan, Route, Step, make_plan
from edgepack_packager.core.proof import (
    check_baseline,
    check_budgets,
    check_drop,
    check_export,
    compare,
    golden_cosine,
    golden_picks,
    resolution_warning,
)
from edgepack_packager.core.recipe import Recipe, Variant
from edgepack_packager.core.report import BuildResult, Built, Failed, Score, report_document
from edgepack_targets import registry
from edgepack_targets.binding import native_layout

__all__ = ["Request", "build"]

FEW_SAMPLES = 32
PARITY_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Request:
    """A build as the command line asks for it: the recipe and where everything is."""

    recipe: Recipe
    source: Path
    out_dir: Path
    calibration: Path | None = None
    evaluate: Path | None = None
    key: ec.EllipticCurvePrivateKey | None = None
    cache: Path | None = None
    may_install: bool = True
    timeout_s: float = 1800.0


def build(
    request: Request, *, say: Callable[[str], None], warn: Callable[[str], None]
) -> BuildResult:
    """Build every variant of REQUEST and return what came of each.

    Raises:
        EdgepackError: nothing could be built because of the source, the data or a toolchain.
    """
    source = open_source(request.source)
    formats = {
        v.target: registry.find(v.target).capability().sources for v in request.recipe.variants
    }
    plan, refused = make_plan(source.kind.name, request.recipe, formats)
    failed = tuple(Failed(variant, error) for variant, error in refused.items())
    if not plan.routes:
        return BuildResult((), failed)
    interpreters = _interpreters(plan, may_install=request.may_install, say=say)
    with tempfile.TemporaryDirectory(prefix="edgepack-build-") as folder:
        steps = Steps(
            Path(folder), request.cache, interpreters, timeout_s=request.timeout_s, say=say
        )
        built, more = _Build(request, source, plan, steps, Path(folder), warn).run()
    return BuildResult(built, failed + more)


def _interpreters(
    plan: Plan, *, may_install: bool, say: Callable[[str], None]
) -> dict[str, Interpreter]:
    """Return the Python of every toolchain of PLAN, installing what is missing."""
    found = {HOST: host_interpreter()}
    for name in plan.toolchains:
        toolchain = toolchains.find_toolchain(name)
        here = toolchains.interpreter(toolchain)
        if here is None and not may_install:
            raise UnsupportedError(
                f"the toolchain {name} is not installed",
                fix=f"edgepack toolchain install {name}",
                reason="toolchain_missing",
            )
        found[name] = here or toolchains.install(toolchain, say)[0]
    return found


class _Build:
    """One build under way: what is known so far about the source and its steps."""

    def __init__(
        self,
        request: Request,
        source: OpenedSource,
        plan: Plan,
        steps: Steps,
        work: Path,
        warn: Callable[[str], None],
    ) -> None:
        self.request, self.recipe, self.source, self.plan = request, request.recipe, source, plan
        self.steps, self.work, self.warn = steps, work, warn
        self.done: dict[str, Done] = {}
        self.fp32: dict[str, tuple[Artefact, Observation]] = {}
        self.warnings: list[str] = []

    def run(self) -> tuple[tuple[Built, ...], tuple[Failed, ...]]:
        """Open, prove and write; return what was built and what was not."""
        opened = self._open()
        inputs, outputs = _publics(opened, "inputs"), _publics(opened, "outputs")
        self.calibration = self._dataset(self.request.calibration, inputs, "calibration data")
        reference = self._refer(inputs)
        self.face = interface_of(
            inputs, outputs, self.recipe, normalised=_sums_to_one(reference, outputs)
        )
        self.prover = Prover(
            self.steps, self.work, reference, metric=self.recipe.metric, output=self.face.main.name
        )
        self._preflight(reference)
        built: list[Built] = []
        failed: list[Failed] = []
        for route in self.plan.routes:
            try:
                built.append(self._variant(route))
            except EdgepackError as error:
                failed.append(Failed(route.variant, error))
        return tuple(built), tuple(failed)

    # -- source and data

    def _source_args(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self.recipe.shapes.items()}
        return {
            "source": str(self.source.path),
            "kind": self.source.kind.name,
            "shapes": shapes,
            "signature": self.recipe.signature,
        }

    def _source_facts(self) -> dict[str, Any]:
        return self._source_args() | {"source": self.source.sha256}

    def _open(self) -> Done:
        step = self.plan.opening
        done = self.steps.run(
            step.toolchain, step.function, self._source_args(), facts=self._source_facts()
        )
        self.done[step.id] = done
        if not done.result["inputs"]:
            raise UnsupportedError(
                "the model has no inputs",
                fix="export it with its inputs, not with a sample in their place",
                reason="no_inputs",
            )
        for tensor in (*done.result["inputs"], *done.result["outputs"]):
            if tensor["shape"][:1] != [1]:
                raise UnsupportedError(
                    f"tensor {tensor['name']} {tensor['shape']} has no batch axis of 1",
                    why="samples are fed one at a time",
                    fix="give the model a first axis for the batch",
                    reason="no_batch_axis",
                )
        return done

    def _dataset(self, path: Path | None, inputs: tuple[Public, ...], what: str) -> Dataset | None:
        if path is None:
            return None
        found = read_dataset(path, inputs, what=what, labelled=what == "evaluation data")
        if found.count < FEW_SAMPLES:
            self._warn(f"{what} has only {found.count} samples; {FEW_SAMPLES} or more are better")
        return found

    def _refer(self, inputs: tuple[Public, ...]) -> Reference:
        """Ask the source framework about the evaluation, calibration or made-up samples."""
        evaluation = self._dataset(self.request.evaluate, inputs, "evaluation data")
        given = evaluation or self.calibration
        samples = dict(given.inputs) if given else synthetic(inputs, self.recipe.seed)
        if evaluation is None:
            samples = {name: array[:PARITY_SAMPLES] for name, array in samples.items()}
        path = write_npz(self.work / "reference-samples.npz", samples)
        step = self.plan.reference
        done = self.steps.run(
            step.toolchain,
            step.function,
            self._source_args() | {"samples": str(path)},
            facts=self._source_facts() | {"samples": digest_of(samples)},
        )
        answers = load_arrays(done.out / "outputs.npz", "the source's answers")
        broken = [name for name, array in answers.items() if not np.isfinite(array).all()]
        if broken:
            raise UsageError(
                f"the source model answers NaN or infinity in {', '.join(broken)}",
                fix="check its weights and the samples",
                reason="source_nan",
            )
        return Reference(samples, answers, evaluation)

    def _preflight(self, reference: Reference) -> None:
        """Refuse a baseline that proves nothing; warn about a limit that cannot be told."""
        if reference.evaluation is None:
            return
        note = resolution_warning(self.recipe.max_drop, reference.evaluation.count)
        if note:
            self._warn(note)
        baseline = self.prover.score()
        labels = reference.evaluation.labels.get("labels")
        if baseline and self.recipe.metric == "top1" and labels is not None:
            check_baseline(baseline.reference, labels, self.face.classes)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.warn(text)

    # -- one variant

    def _variant(self, route: Route) -> Built:
        artefact, seen = self._baseline(route)
        base = seen
        if route.variant.precision != "fp32":
            done = self._steps_of(route)
            artefact = self._artefact(route, done)
            seen = self.prover.observe(done.out, draft(self.recipe, self.face, artefact))
        score = self.prover.score(seen.answers)
        if score:
            check_drop(score.reference, score.this, self.recipe.max_drop)
        check_budgets(seen.measured, base.measured, self.recipe.budgets)
        manifest = self._complete(artefact, seen, score)
        return self._write(route, artefact, manifest, seen, base, score)

    def _baseline(self, route: Route) -> tuple[Artefact, Observation]:
        """Return the fp32 artefact of the route's target, proven against the source."""
        target = route.variant.target
        if target not in self.fp32:
            steps = tuple(step for step in route.steps if step.id != f"{target}-int8")
            plain = Route(Variant(target, "fp32"), steps)
            done = self._steps_of(plain)
            artefact = self._artefact(plain, done)
            seen = self.prover.observe(done.out, draft(self.recipe, self.face, artefact))
            check_export(seen.parity, self.prover.reference.largest, target)
            self.fp32[target] = (artefact, seen)
        return self.fp32[target]

    def _steps_of(self, route: Route) -> Done:
        for step in route.steps:
            if step.id not in self.done:
                self.done[step.id] = self._step(step)
        return self.done[route.artefact.id]

    def _step(self, step: Step) -> Done:
        before = self.done[step.needs[0]]
        args: dict[str, Any] = {"target": step.target, "source_format": step.source_format}
        facts = dict(args)
        if step.function == "convert.quantize":
            args |= {"calibration": str(self._native_calibration(step)), "seed": self.recipe.seed}
            facts |= {"calibration": self.calibration_digest, "seed": self.recipe.seed}
        where = {"from": str(before.out), "saved_model": str(before.out / "saved_model")}
        return self.steps.run(
            step.toolchain, step.function, args | where, parents=[before], facts=facts
        )

    @property
    def calibration_digest(self) -> str:
        """The digest of the calibration data; empty if there is none."""
        return self.calibration.digest if self.calibration else ""

    def _native_calibration(self, step: Step) -> Path:
        """Write the calibration samples by native name and in native layout."""
        if self.calibration is None:
            raise UsageError("int8 needs calibration data", reason="no_calibration")
        specs = bind(self.face.inputs, _natives(self.done[step.needs[0]], "inputs"))
        native = {
            spec.binding.native_name: native_layout(spec, self.calibration.inputs[spec.name])
            for spec in specs
        }
        return write_npz(self.work / f"calibration-{step.target}.npz", native)

    def _artefact(self, route: Route, done: Done) -> Artefact:
        opening = self.plan.opening
        chain = [self.done[opening.id], *(self.done[step.id] for step in route.steps)]
        tools = {name: v for one in chain for name, v in one.result["versions"].items()}
        return Artefact(
            variant=route.variant,
            runtime_version=registry.find(route.variant.target).version(),
            inputs=bind(self.face.inputs, _natives(done, "inputs")),
            outputs=bind(self.face.outputs, _natives(done, "outputs")),
            files=tuple(_entry(path) for path in sorted(done.out.iterdir())),
            source_sha256=self.source.sha256,
            source_format=self.source.kind.name,
            steps=(opening.function, *(step.function for step in route.steps)),
            tools=tools,
            applied=done.result["applied"],
            calibration=self._calibration(done),
        )

    def _calibration(self, done: Done) -> Calibration | None:
        said = done.result.get("calibration")
        if said is None:
            return None
        return Calibration(
            method=said["method"],
            samples=said["samples"],
            dataset_digest=self.calibration_digest,
            seed=said["seed"],
            tools=said["tools"],
        )

    # -- the bundle

    def _complete(self, artefact: Artefact, seen: Observation, score: Score | None) -> Manifest:
        picks = golden_picks(len(next(iter(seen.answers.values()))))
        reference = {name: array[picks] for name, array in self.prover.reference.answers.items()}
        golden = {name: array[picks] for name, array in seen.answers.items()}
        main = self.face.main.name
        distance = 1 - compare({main: reference[main]}, {main: golden[main]}).cosine
        evaluation = self.prover.reference.evaluation
        metrics = None
        if score and evaluation:
            metrics = asdict(score) | {
                "drop": score.drop, "dataset_digest": evaluation.digest,
                "limit": self.recipe.max_drop,
            }  # fmt: skip
        return complete(
            draft(self.recipe, self.face, artefact),
            samples=len(picks),
            min_cosine=golden_cosine(distance),
            metrics=metrics,
        )

    def _write(
        self,
        route: Route,
        artefact: Artefact,
        manifest: Manifest,
        seen: Observation,
        base: Observation,
        score: Score | None,
    ) -> Built:
        files = self._files(route, manifest, seen)
        info = write_bundle(self.request.out_dir, manifest, files, key=self.request.key)
        built = Built(
            variant=route.variant,
            path=str(info.path),
            digest=info.digest,
            size_bytes=info.size_bytes,
            parity=seen.parity,
            measured=seen.measured,
            fp32=base.measured,
            score=score,
            effective=seen.effective,
            applied=artefact.applied,
            extra=seen.extra,
        )
        report = report_document(built, host=_host(), warnings=self.warnings)
        try:
            _write_report(info.path.with_suffix(".report.json"), report)
        except UsageError:
            info.path.unlink(missing_ok=True)
            raise
        return built

    def _files(self, route: Route, manifest: Manifest, seen: Observation) -> dict[str, Path]:
        done = self.done[route.artefact.id]
        desk = self.work / f"bundle-{route.variant.target}-{route.variant.precision}"
        desk.mkdir()
        picks = golden_picks(len(next(iter(seen.answers.values()))))
        samples = {name: array[picks] for name, array in self.prover.reference.samples.items()}
        answers = {name: array[picks] for name, array in seen.answers.items()}
        files = {f"model/{path.name}": path for path in sorted(done.out.iterdir())}
        files[manifest.golden.inputs] = write_npz(desk / "inputs.npz", samples)
        files[manifest.golden.outputs] = write_npz(desk / "outputs.npz", answers)
        if manifest.labels:
            labels = desk / "labels.txt"
            labels.write_text("\n".join(manifest.labels) + "\n")
            files["labels.txt"] = labels
        return files


def _publics(opened: Done, side: str) -> tuple[Public, ...]:
    return tuple(
        Public(t["name"], t["key"], tuple(t["shape"]), t["dtype"]) for t in opened.result[side]
    )


def _natives(done: Done, side: str) -> list[Native]:
    return [Native(name, tuple(shape), dtype) for name, shape, dtype in done.result[side]]


def _sums_to_one(reference: Reference, outputs: tuple[Public, ...]) -> bool:
    rows = reference.answers[outputs[0].name].reshape(
        len(next(iter(reference.answers.values()))), -1
    )
    return bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3))


def _entry(path: Path) -> FileEntry:
    size, digest = path.stat().st_size, digest_tree(path)
    return FileEntry(path=f"model/{path.name}", role="model", size=size, sha256=digest)


def _host() -> dict[str, Any]:
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count()}


def _write_report(path: Path, report: dict[str, Any]) -> None:
    try:
        durable.write_file(path, (json.dumps(report, indent=2) + "\n").encode())
    except OSError as error:
        raise UsageError(
            f"cannot write {path}", why=error.strerror or str(error), reason="unwritable"
        ) from error
