"""Drive the variants of an opened source: prove each, hold it against its gates, write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from edgepack.errors import AccuracyError, EdgepackError, UnsupportedError
from edgepack.manifest import Manifest
from edgepack_packager.adapters.proof import Observation
from edgepack_packager.adapters.steps import no_room
from edgepack_packager.bundling import Bundler
from edgepack_packager.core.budget import Profile, Verdict, judge
from edgepack_packager.core.crosscheck import crossed
from edgepack_packager.core.drift_baseline import drift_baseline
from edgepack_packager.core.holdout import Paired, resolution_note
from edgepack_packager.core.layers import with_layers
from edgepack_packager.core.manifest import Artefact, draft
from edgepack_packager.core.plan import Route
from edgepack_packager.core.proof import check_drop
from edgepack_packager.core.recipe import Budgets, Variant
from edgepack_packager.core.report import About, BuildResult, Built, Failed, Score
from edgepack_packager.pipeline import Pipeline
from edgepack_targets.interface import Capability, Layer, Quantization
from edgepack_targets.machine import describe_machine

if TYPE_CHECKING:
    from edgepack_packager.searching import Searched, Searcher

__all__ = ["Variants"]

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Variants:
    """The variants of one opened source, each all or nothing."""

    pipeline: Pipeline
    bundler: Bundler
    capabilities: Mapping[str, Capability]
    about: About
    warn: Warn
    searcher: Searcher | None = None
    profiles: Sequence[Profile] = ()
    _answers: dict[Variant, Mapping[str, Any]] = field(default_factory=dict)

    def build(self, routes: Sequence[Route], jobs: int, stop: Callable[[], None]) -> BuildResult:
        """Build every variant, JOBS side by side; STOP ends the workers when it is given up."""
        if jobs > 1:
            with ThreadPoolExecutor(jobs) as pool:
                try:
                    outcomes = list(pool.map(self._attempt, routes))
                except BaseException:
                    stop()
                    raise
        else:
            outcomes = [self._attempt(route) for route in routes]
        built = tuple(one for one in outcomes if isinstance(one, Built))
        failed = tuple(one for one in outcomes if isinstance(one, Failed))
        face = self.pipeline.opened.face
        decided = face.main.name if face.task == "classify" else None
        answers = {one.variant: self._answers[one.variant] for one in built}
        return BuildResult(built, failed, crossed=tuple(crossed(answers, decided)))

    def _attempt(self, route: Route) -> Built | Failed:
        try:
            return self._variant(route)
        except EdgepackError as error:
            return Failed(route.variant, error)
        except OSError as error:
            return Failed(route.variant, no_room(error))

    def _variant(self, route: Route) -> Built:
        _, base = self.pipeline.baseline(route)
        searched = self._search(route)
        route = searched.route if searched else route
        artefact, seen = self.pipeline.prove(route)
        prover = self.pipeline.prover
        score, pair = prover.score(seen.answers), prover.pair(seen.answers)
        self._gate(route, score, pair, searched)
        self._answers[route.variant] = seen.answers
        step = route.quantization
        built = Built(
            variant=route.variant,
            # Path, digest and size are known once the bundle is written.
            path="",
            digest="",
            size_bytes=0,
            parity=seen.parity,
            measured=seen.measured,
            fp32=base.measured,
            score=score,
            effective=seen.effective,
            applied=artefact.applied,
            extra=seen.extra,
            paired=pair,
            search=searched.document if searched else {},
            settings=_asked(step.how) if step and step.how else {},
            arch=artefact.arch,
            tools=artefact.tools,
            verdict=self._judge(route.variant, seen, base),
        )
        manifest = self._manifest(artefact, seen, score)
        model_dir = self.pipeline.run(route)[-1].out
        return self.bundler.ship(built, manifest, model_dir, seen)

    def _manifest(self, artefact: Artefact, seen: Observation, score: Score | None) -> Manifest:
        opened = self.pipeline.opened
        drafted = draft(self.pipeline.recipe, opened.face, artefact)
        samples = self.pipeline.prover.reference.samples
        baseline = drift_baseline(
            drafted, samples, seen.answers, digest=self.pipeline.prover.samples_digest
        )
        drafted = msgspec.structs.replace(drafted, drift=baseline)
        return self.bundler.complete(drafted, seen, score, opened.face.main.name)

    # -- gates

    def _judge(self, variant: Variant, seen: Observation, base: Observation) -> Verdict | None:
        """Hold what was measured against the budgets; None if there are none."""
        budgets = self.pipeline.recipe.budgets
        if budgets == Budgets():
            return None
        verdict = judge(
            seen.measured, base.measured, budgets,
            name=self.about.name, variant=variant, machine=describe_machine()["machine"],
            profiles=self.profiles,
        )  # fmt: skip
        if verdict.limited and verdict.judged_on == "host" and self.profiles:
            self.warn(f"{variant}: --profile does not have it, so this host is judged")
        return verdict

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
        limit = self.pipeline.recipe.max_drop
        if searched:
            searched.check(score, limit)
            note = pair and resolution_note(pair, limit or 0.0)
            if note:
                self.warn(f"{route.variant}: {note}")
            return
        try:
            check_drop(score.reference, score.this, limit)
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


def _asked(how: Quantization) -> dict[str, Any]:
    """Return the precision, and what differs from the default settings."""
    plain = asdict(Quantization(how.precision))
    return {name: v for name, v in asdict(how).items() if name == "precision" or v != plain[name]}
