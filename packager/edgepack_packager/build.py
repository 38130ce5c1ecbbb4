"""Drive a build: source, plan, steps, proof, bundle. Decides nothing that `core` can decide.

Each variant is all or nothing: it is proven before its bundle is written, under a temporary
name first. What fails for one variant does not touch the others.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edgepack.errors import UnsupportedError, UsageError
from edgepack_packager.adapters import toolchains
from edgepack_packager.adapters.cache import StepCache
from edgepack_packager.adapters.profile import read_profiles
from edgepack_packager.adapters.proof import Prover
from edgepack_packager.adapters.reports import write_page
from edgepack_packager.adapters.source import OpenedSource, open_source
from edgepack_packager.adapters.steps import Progress, Steps, no_room
from edgepack_packager.adapters.worker import Interpreter, host_interpreter
from edgepack_packager.bundling import Bundler
from edgepack_packager.core.budget import Profile
from edgepack_packager.core.plan import HOST, Plan, make_plan
from edgepack_packager.core.proof import check_baseline, resolution_warning
from edgepack_packager.core.recipe import Budgets, Recipe
from edgepack_packager.core.report import About, BuildResult, Failed, Source
from edgepack_packager.opening import Opened, Opener, identified
from edgepack_packager.pipeline import Pipeline
from edgepack_packager.searching import Searcher, separate
from edgepack_packager.variants import Variants
from edgepack_targets import registry
from edgepack_targets.interface import Capability
from edgepack_targets.machine import describe_machine

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
    emit: tuple[str, ...] = ()
    """Servers that get a folder of their own beside each bundle; see `core.emit`."""
    key: ec.EllipticCurvePrivateKey | None = None
    profile: Path | None = None
    """What was measured on a device, for the budgets."""
    command: tuple[str, ...] = ()
    """The words that repeat the build, for its reports."""
    cache: Path | None = None
    may_install: bool = True
    jobs: int = 1
    timeout_s: float = 1800.0


def build(request: Request, *, progress: Progress, warn: Warn) -> BuildResult:
    """Build every variant of REQUEST and return what came of each.

    Raises:
        EdgepackError: nothing could be built because of the source, the data or a toolchain.
    """
    profiles = _profiles(request)
    _check_out(request.out_dir)
    source = open_source(request.source, weights=request.weights, trust=request.trust)
    _check_signature(source, request.recipe)
    capabilities = {t: registry.find(t).capability() for t in registry.names()}
    plan, refused = make_plan(source.kind.name, request.recipe, capabilities, precision=None)
    if not plan.routes:
        return BuildResult((), tuple(Failed(v, error) for v, error in refused.items()))
    interpreters = _interpreters(plan, request, progress)
    cache = StepCache(request.cache) if request.cache else None
    with _desk() as folder:
        steps = Steps(
            folder, cache, interpreters, timeout_s=request.timeout_s,
            progress=progress, expected=_expected(plan),
        )  # fmt: skip
        try:
            build = _Build(request, source, capabilities, steps, folder, profiles, warn)
            result = build.run(plan)
        finally:
            steps.stop()
    if cache:
        cache.prune()
    return replace(result, steps_run=steps.started, steps_kept=steps.taken)


@contextmanager
def _desk() -> Iterator[Path]:
    """Yield a temporary directory; what cannot be written there is told as an error of use."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgepack-build-") as folder:
            yield Path(folder)
    except OSError as error:
        raise no_room(error) from error


def _expected(plan: Plan) -> int:
    """Return about how many steps PLAN takes: open, ask, convert, and two proofs per variant."""
    conversions = {step.id for route in plan.routes for step in route.steps}
    return 2 + 2 * plan.compresses + len(conversions) + 2 * len(plan.routes)


def _check_signature(source: OpenedSource, recipe: Recipe) -> None:
    """Refuse to pick one of several where there is but one.

    Raises:
        UsageError: the source has no signatures.
    """
    if recipe.signature is not None and source.kind.name != "saved_model":
        raise UsageError(
            f"--signature picks one of a SavedModel's, and {source.path.name} is none",
            fix="leave it out",
            reason="needless_signature",
        )


def _check_out(out_dir: Path) -> None:
    """Refuse before the work what cannot be written after it.

    Raises:
        UsageError: there is a file in the way, or no permission.
    """
    there = next(path for path in (out_dir, *out_dir.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        why = f"{there} is not a directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = f"nothing may be written to {there}"
    else:
        return
    raise UsageError(f"cannot write to {out_dir}", why=why, fix="--out DIR", reason="unwritable")


def _profiles(request: Request) -> tuple[Profile, ...]:
    """Return what was measured on devices, read before anything takes time."""
    if request.profile is None:
        return ()
    if request.recipe.budgets == Budgets():
        raise UsageError(
            "--profile is what limits are held against, and there is no limit",
            fix="--max-latency-ms, --max-rss-mb or --fail-if-slower; or leave --profile out",
            reason="profile_without_limit",
        )
    return read_profiles(request.profile)


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
        profiles: tuple[Profile, ...],
        warn: Warn,
    ) -> None:
        self.request, self.recipe, self.source = request, request.recipe, source
        self.capabilities, self.steps, self.work = capabilities, steps, work
        self.profiles = profiles
        self._warn_user = warn
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        self._warn_user(text)

    def run(self, plan: Plan) -> BuildResult:
        """Open, prove and write; return what was built and what was not."""
        self.source = identified(self.source, plan.source, self.recipe, self.steps)
        opener = Opener(self.source, plan.source, self.recipe, self.steps, self.work, self.warn)
        opened = opener.open(self.request.calibration, self.request.evaluate, self.request.train)
        self.recipe = opened.recipe
        plan, refused = make_plan(
            self.source.kind.name, self.recipe, self.capabilities, precision=opened.precision
        )
        no = tuple(Failed(variant, error) for variant, error in refused.items())
        if not plan.routes:
            return BuildResult((), no)
        opened, searcher = self._separate(opener, opened)
        pipeline = self._pipeline(opened)
        self._preflight(opened, pipeline.prover)
        about = self._about(opened)
        variants = Variants(
            pipeline, self._bundler(pipeline.prover, about), self.capabilities, about, self.warn,
            searcher, self.profiles,
        )  # fmt: skip
        result = variants.build(plan.routes, self.request.jobs, self.steps.stop)
        result = replace(result, failed=no + result.failed)
        if result.built:
            self._page(result, about)
        return result

    def _page(self, result: BuildResult, about: About) -> None:
        """Write the page that people share; the bundles are there and good without it."""
        host, out_dir = describe_machine(), self.request.out_dir
        tools = {name: v for one in result.built for name, v in one.tools.items()}
        about = replace(about, tools={**about.tools, **tools})
        try:
            write_page(out_dir, result, host=host, warnings=self.warnings, about=about)
        except UsageError as error:
            self.warn(f"{error.what}: {error.why}")

    def _pipeline(self, opened: Opened) -> Pipeline:
        prover = Prover(
            self.steps, self.work, opened.reference, metric=self.recipe.metric,
            output=opened.face.main.name,
        )  # fmt: skip
        told = (self.source.kind.name, self.source.sha256)
        return Pipeline(self.recipe, told, opened, self.steps, prover, self.work)

    def _bundler(self, prover: Prover, about: About) -> Bundler:
        request = self.request
        return Bundler(
            self.recipe, prover, self.work, request.out_dir, request.key,
            emit=request.emit, about=about, warnings=self.warnings,
        )  # fmt: skip

    def _about(self, opened: Opened) -> About:
        return About(
            name=self.recipe.name,
            version=self.recipe.version,
            source=Source(self.source.path.name, self.source.kind.name, self.source.sha256),
            command=self.request.command,
            compression=tuple(opened.compression),
            tools=dict(opened.done.result["versions"]),
            max_drop=self.recipe.max_drop,
            calibration=opened.calibration.count if opened.calibration else None,
        )

    def _separate(self, opener: Opener, opened: Opened) -> tuple[Opened, Searcher | None]:
        """Take samples for the search away from those that everything is judged on."""
        if not self.recipe.auto:
            return opened, None
        path = self.request.holdout
        other = opener.refer(opened, path) if path else None
        search, judged = separate(opened.reference, other, self.recipe.seed, self.warn)
        searcher = Searcher(
            self.recipe, (self.source.kind.name, self.source.sha256),
            replace(opened, reference=search), self.capabilities, self.steps, self.work,
        )  # fmt: skip
        return replace(opened, reference=judged), searcher

    def _preflight(self, opened: Opened, prover: Prover) -> None:
        """Refuse a baseline that proves nothing; warn about a limit that cannot be told."""
        evaluation = opened.reference.evaluation
        if evaluation is None:
            return
        note = resolution_warning(self.recipe.max_drop, evaluation.count)
        if note:
            self.warn(note)
        baseline = prover.score()
        labels = evaluation.labels.get("labels")
        if baseline and self.recipe.metric == "top1" and labels is not None:
            check_baseline(baseline.reference, labels, opened.face.classes)
