"""Drive a build: source, plan, steps, proof, bundle. Decides nothing that `core` can decide.

Each variant is all or nothing: it is proven before its bundle is written, under a temporary
name first. What fails for one variant does not touch the others.
"""

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.errors import AccuracyError, EdgepackError, UnsupportedError, UsageError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.cache import StepCache
from edgepack_packager.adapters.proof import Prover
from edgepack_packager.adapters.source import OpenedSource, open_source
from edgepack_packager.adapters.steps import Progress, Steps
from edgepack_packager.adapters.worker import Interpreter, host_interpreter
from edgepack_packager.bundling import Bundler, as_json, host_facts, write_text
from edgepack_packager.core.holdout import Paired, resolution_note
from edgepack_packager.core.layers import with_layers
from edgepack_packager.core.manifest import draft
from edgepack_packager.core.plan import HOST, Plan, Route, make_plan
from edgepack_packager.core.proof import (
    check_baseline,
    check_budgets,
    check_drop,
    resolution_warning,
)
from edgepack_packager.core.recipe import Recipe
from edgepack_packager.core.report import BuildResult, Built, Failed, Score, report_document
from edgepack_packager.opening import Opener
from edgepack_packager.pipeline import Pipeline
from edgepack_packager.searching import Searched, Searcher, check_holdout, separate
from edgepack_targets import registry
from edgepack_targets.interface import Capability, Layer

__all__ = ["Request", "build"]

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """A build as the command line asks for it: the recipe and where everything is."""

    recipe: Recipe
    source: str
    """A path, or `module.py:factory`."""
    out_dir: Path
    calibration: Path | None = None
    evaluate: Path | None = None
    holdout: Path | None = None
    """What `auto` is judged on; None: half of what is given to evaluate."""
    train: Path | None = None
    weights: Path | None = None
    trust: bool = False
    """Whether code and pickles of the source may run."""
    key: ec.EllipticCurvePrivateKey | None = None
    cache: Path | None = None
    may_install: bool = True
    jobs: int = 1
    timeout_s: float = 1800.0


def build(request: Request, *, progress: Progress, warn: Warn) -> BuildResult:
    """Build every variant of REQUEST and return what came of each.

    Raises:
        EdgepackError: nothing could be built because of the source, the data or a toolchain.
    """
    source = open_source(request.source, weights=request.weights, trust=request.trust)
    capabilities = {t: registry.find(t).capability() for t in registry.names()}
    plan, refused = make_plan(source.kind.name, request.recipe, capabilities, precision=None)
    if not plan.routes:
        return BuildResult((), tuple(Failed(v, error) for v, error in refused.items()))
    interpreters = _interpreters(plan, request, progress)
    cache = StepCache(request.cache) if request.cache else None
    with tempfile.TemporaryDirectory(prefix="edgepack-build-") as folder:
        steps = Steps(
            Path(folder), cache, interpreters, timeout_s=request.timeout_s,
            progress=progress, expected=_expected(plan),
        )  # fmt: skip
        try:
            result = _Build(request, source, capabilities, steps, Path(folder), warn).run(plan)
        finally:
            steps.stop()
    if cache:
        cache.prune()
    return replace(result, steps_run=steps.started, steps_kept=steps.taken)


def _expected(plan: Plan) -> int:
    """Return about how many steps PLAN takes: open, ask, convert, and two proofs per variant."""
    conversions = {step.id for route in plan.routes for step in route.steps}
    return 2 + 2 * plan.compresses + len(conversions) + 2 * len(plan.routes)


def _interpreters(plan: Plan, request: Request, progress: Progress) -> dict[str, Interpreter]:
    """Return the Python of every toolchain of PLAN, installing what is missing."""
    found = {HOST: host_interpreter()}
    for name in plan.toolchains:
        toolchain = toolchains.find_toolchain(name)
        here = toolchains.interpreter(toolchain)
        if here is None and not request.may_install:
            raise UnsupportedError(
                f"the toolchain {name} is not installed",
                fix=f"edgepack toolchain install {name}",
                reason="toolchain_missing",
            )
        found[name] = here or toolchains.install(toolchain, lambda text: progress(text, 0, 0))[0]
    return found


class _Build:
    """One build under way."""

    def __init__(
        self,
        request: Request,
        source: OpenedSource,
        capabilities: Mapping[str, Capability],
        steps: Steps,
        work: Path,
        warn: Warn,
    ) -> None:
        self.request, self.recipe, self.source = request, request.recipe, source
        self.capabilities, self.steps, self.work = capabilities, steps, work
        self._warn_user = warn
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._warn_user(text)

    def run(self, plan: Plan) -> BuildResult:
        """Open, prove and write; return what was built and what was not."""
        opener = Opener(self.source, plan.source, self.recipe, self.steps, self.work, self.warn)
        self.opened = opener.open(
            self.request.calibration, self.request.evaluate, self.request.train
        )
        plan, refused = make_plan(
            self.source.kind.name, self.recipe, self.capabilities, precision=self.opened.precision
        )
        self._separate(opener)
        self.main = self.opened.face.main.name
        self.prover = Prover(
            self.steps, self.work, self.opened.reference, metric=self.recipe.metric,
            output=self.main,
        )  # fmt: skip
        self._preflight()
        self.pipeline = Pipeline(
            self.recipe, (self.source.kind.name, self.source.sha256), self.opened, self.steps,
            self.prover, self.work,
        )  # fmt: skip
        self.bundler = Bundler(
            self.recipe, self.prover, self.work, self.request.out_dir, self.request.key
        )
        return self._variants(plan, tuple(Failed(v, error) for v, error in refused.items()))

    def _separate(self, opener: Opener) -> None:
        """Take samples for the search away from those that everything is judged on."""
        self.searcher: Searcher | None = None
        if not self.recipe.auto:
            return
        whole, path = self.opened.reference, self.request.holdout
        other = opener.refer(self.opened, path) if path else None
        search, judged = separate(whole, other, self.recipe.seed, self.warn)
        self.opened = replace(self.opened, reference=judged)
        self.searcher = Searcher(
            self.recipe, (self.source.kind.name, self.source.sha256),
            replace(self.opened, reference=search), self.capabilities, self.steps, self.work,
        )  # fmt: skip

    def _preflight(self) -> None:
        """Refuse a baseline that proves nothing; warn about a limit that cannot be told."""
        evaluation = self.opened.reference.evaluation
        if evaluation is None:
            return
        note = resolution_warning(self.recipe.max_drop, evaluation.count)
        if note:
            self.warn(note)
        baseline = self.prover.score()
        labels = evaluation.labels.get("labels")
        if baseline and self.recipe.metric == "top1" and labels is not None:
            check_baseline(baseline.reference, labels, self.opened.face.classes)

    def _variants(self, plan: Plan, refused: tuple[Failed, ...]) -> BuildResult:
        """Build every variant: their steps side by side if there are jobs, bundles in order."""
        if self.request.jobs > 1:
            with ThreadPoolExecutor(self.request.jobs) as pool:
                try:
                    outcomes = list(pool.map(self._attempt, plan.routes))
                except BaseException:
                    self.steps.stop()
                    raise
        else:
            outcomes = [self._attempt(route) for route in plan.routes]
        built = tuple(one for one in outcomes if isinstance(one, Built))
        failed = tuple(one for one in outcomes if isinstance(one, Failed))
        return BuildResult(built, refused + failed)

    def _attempt(self, route: Route) -> Built | Failed:
        try:
            return self._variant(route)
        except EdgepackError as error:
            return Failed(route.variant, error)

    def _variant(self, route: Route) -> Built:
        base_artefact, base = self.pipeline.baseline(route)
        searched = self._search(route)
        route = searched.route if searched else route
        artefact, seen = base_artefact, base
        if route.variant.precision != "fp32":
            artefact, seen = self.pipeline.prove(route)
        score = self.prover.score(seen.answers)
        pair = self.prover.pair(seen.answers)
        self._gate(route, score, pair, searched)
        check_budgets(seen.measured, base.measured, self.recipe.budgets)
        drafted = draft(self.recipe, self.opened.face, artefact)
        manifest = self.bundler.complete(drafted, seen, score, self.main)
        model_dir = self.pipeline.run(route)[-1].out
        info = self.bundler.write(manifest, model_dir, seen, artefact)
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
            paired=pair,
            search=searched.document if searched else {},
        )
        report = report_document(built, host=host_facts(), warnings=self.warnings)
        try:
            write_text(info.path.with_suffix(".report.json"), as_json(report))
        except UsageError:
            info.path.unlink(missing_ok=True)
            raise
        return built

    def _search(self, route: Route) -> Searched | None:
        """Search for what keeps the limit; fp32 is what there is to start from."""
        if self.searcher is None or route.variant.precision == "fp32":
            return None
        return self.searcher.search(route)

    def _gate(
        self, route: Route, score: Score | None, pair: Paired | None, searched: Searched | None
    ) -> None:
        """Check the drop; what fails names the layers, or says that the holdout disagrees."""
        if score is None:
            return
        if searched:
            check_holdout(searched, score, self.recipe.max_drop)
            note = pair and resolution_note(pair, self.recipe.max_drop or 0.0)
            if note:
                self.warn(f"{route.variant}: {note}")
            return
        try:
            check_drop(score.reference, score.this, self.recipe.max_drop)
        except AccuracyError as error:
            told = with_layers(error, self._layers(route), auto=self._can_exclude(route))
            if told is error:
                raise
            raise told from error

    def _can_exclude(self, route: Route) -> bool:
        return "exclude" in self.capabilities[route.variant.target].options

    def _layers(self, route: Route) -> list[Layer]:
        try:
            return self.pipeline.diagnose(route)
        except UnsupportedError:
            # The accuracy is what failed; a model whose layers cannot be compared changes nothing.
            return []
