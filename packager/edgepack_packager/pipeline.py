"""Drive the second half of a build: from an opened source to proven artefacts. Writes no bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.manifest import Calibration, FileEntry
from edgepack_packager.adapters.source import digest_tree
from edgepack_packager.adapters.steps import Done, Steps
from edgepack_packager.core.binding import Native, bind
from edgepack_packager.core.manifest import Artefact, draft, stated_facts
from edgepack_packager.core.plan import HOST, KINDS, Route, Step
from edgepack_packager.core.proof import check_export, compare
from edgepack_packager.core.recipe import Recipe
from edgepack_packager.workers.arrays import write_npz
from edgepack_targets import registry
from edgepack_targets.binding import native_layout
from edgepack_targets.interface import Layer

if TYPE_CHECKING:
    from edgepack_packager.adapters.proof import Observation, Prover
    from edgepack_packager.opening import Opened

__all__ = ["Pipeline"]


class Pipeline:
    """Makes and proves the artefacts of one build; safe to use from several threads.

    Args:
        recipe: What was asked for.
        source: Kind and digest of the source, for the manifest.
        opened: What the source turned out to be.
        steps: Where workers run.
        prover: Runs and scores artefacts.
        work: Temporary directory of the build.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: tuple[str, str],
        opened: Opened,
        steps: Steps,
        prover: Prover,
        work: Path,
    ) -> None:
        self.recipe, self.opened, self.prover = recipe, opened, prover
        self._kind, self._sha256 = source
        self._steps, self._work = steps, work

    def run(self, route: Route) -> list[Done]:
        """Run the steps of ROUTE in order; the last one wrote the artefact."""
        done = {KINDS[self._kind].opening.id: self.opened.done}
        for step in route.steps:
            done[step.id] = self._run(step, done[step.needs[0]])
        return [done[step.id] for step in route.steps]

    def prove(self, route: Route) -> tuple[Artefact, Observation]:
        """Return the artefact of ROUTE and what it did in the device's runtime."""
        chain = self.run(route)
        artefact = self._artefact(route, chain)
        manifest = draft(self.recipe, self.opened.face, artefact)
        return artefact, self.prover.observe(chain[-1], manifest)

    def baseline(self, route: Route) -> tuple[Artefact, Observation]:
        """Return the fp32 artefact of the route's target, proven to answer as its source does.

        Raises:
            AccuracyError: it does not: the conversion is wrong for this model.
        """
        artefact, seen = self.prove(route.plain)
        reference = self.prover.reference
        parity = compare(reference.exported, seen.answers)
        check_export(
            parity, reference.largest, route.variant.target, precision=self.opened.precision
        )
        return artefact, seen

    def diagnose(self, route: Route) -> list[Layer]:
        """Return what the quantisation of ROUTE did to each layer, worst first."""
        step = route.quantization
        if step is None or self.opened.calibration is None:
            return []
        chain = dict(zip((one.id for one in route.steps), self.run(route), strict=True))
        fp32, lowered = chain[step.needs[0]], chain[step.id]
        args = {
            "fp32": str(fp32.out),
            "from": str(lowered.out),
            "target": step.target,
            "calibration": self._native_calibration(step.target, fp32),
        }
        facts = {"target": step.target, "calibration": self.opened.calibration.digest}
        said = self._steps.run(
            HOST, "convert.diagnose", args, facts=facts, parents=[fp32, lowered]
        ).result
        return [Layer(*layer) for layer in said["layers"]]

    # -- steps

    def _run(self, step: Step, before: Done) -> Done:
        settings: dict[str, Any] = {
            "target": step.target, "source_format": step.source_format, "arch": step.arch,
            "how": asdict(step.how) if step.how else None,
            "annotations": stated_facts(self.recipe, self.opened.face) if step.target else None,
            "shapes": self.opened.open_shapes if step.source_format else None,
        }  # fmt: skip
        facts, args = dict(settings), dict(settings)
        if step.how and step.how.precision == "int8" and self.opened.calibration:
            args["calibration"] = self._native_calibration(step.target, before)
            facts["calibration"] = self.opened.calibration.digest
        args |= {"from": str(before.out), "saved_model": str(before.out / "saved_model")}
        return self._steps.run(step.toolchain, step.function, args, parents=[before], facts=facts)

    def _native_calibration(self, target: str, fp32: Done) -> str:
        """Write the calibration samples by native name and in native layout; return where."""
        path = self._work / f"calibration-{target}-{fp32.key[:16]}.npz"
        calibration = self.opened.calibration
        if calibration and not path.is_file():
            specs = bind(self.opened.face.inputs, _natives(fp32, "inputs"))
            native = {
                spec.binding.native_name: native_layout(spec, calibration.inputs[spec.name])
                for spec in specs
            }
            write_npz(path, native)
        return str(path)

    # -- what the manifest says

    def _artefact(self, route: Route, chain: list[Done]) -> Artefact:
        last = chain[-1]
        before = [self.opened.compressed] if self.opened.compressed else []
        whole = [*before, self.opened.done, *chain]
        step = route.quantization
        said = chain[route.steps.index(step)].result["calibration"] if step else None
        return Artefact(
            variant=route.variant,
            runtime_version=registry.find(route.variant.target).version(),
            inputs=bind(self.opened.face.inputs, _natives(last, "inputs")),
            outputs=bind(self.opened.face.outputs, _natives(last, "outputs")),
            files=tuple(_entry(path) for path in sorted(last.out.iterdir())),
            source_sha256=self._sha256,
            source_format=self._kind,
            steps=self._history(route, said),
            tools={name: v for one in whole for name, v in one.result["versions"].items()},
            applied=last.result["applied"],
            calibration=self._calibration(said),
            arch=tuple(last.result.get("arch", ())),
            cpu_features=_needed_cpu(said or {}, last.result),
        )

    def _history(self, route: Route, said: dict[str, Any] | None) -> tuple[str, ...]:
        """Return what was done, in order, in words that a person and a search can read."""
        compressed = (f"compress.{one['kind']}" for one in self.opened.compression)
        quantised = [f"quantize.{said['method']}"] if said else []
        functions = (s.function for s in route.steps if not s.how)
        return (*compressed, KINDS[self._kind].opening.function, *functions, *quantised)

    def _calibration(self, said: dict[str, Any] | None) -> Calibration | None:
        data = self.opened.calibration
        if said is None or not said.get("samples") or data is None:
            return None
        return Calibration(
            method=said["method"],
            samples=said["samples"],
            dataset_digest=data.digest,
            seed=said["seed"],
            tools=said["tools"],
        )


def _needed_cpu(*results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what any of the steps needs of the CPU: each on its own would answer wrongly."""
    return tuple(sorted({name for one in results for name in one.get("cpu_features", ())}))


def _natives(done: Done, side: str) -> list[Native]:
    return [Native(name, tuple(shape), dtype) for name, shape, dtype in done.result[side]]


def _entry(path: Path) -> FileEntry:
    size, digest = path.stat().st_size, digest_tree(path)
    return FileEntry(path=f"model/{path.name}", role="model", size=size, sha256=digest)
