"""Drive `--auto`: build and judge one attempt after the other. What to try next is decided in core.

Attempts are judged on samples of their own; those that the report is about are never shown here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.errors import AccuracyError, EdgepackError, UnsupportedError, UsageError
from edgepack_packager.adapters.datasets import Dataset, digest_of
from edgepack_packager.adapters.proof import Prover, Reference
from edgepack_packager.adapters.steps import Steps
from edgepack_packager.core.holdout import Rows, split
from edgepack_packager.core.plan import Route
from edgepack_packager.core.proof import check_drop
from edgepack_packager.core.recipe import Recipe
from edgepack_packager.core.report import Score
from edgepack_packager.core.search import (
    Attempt,
    Diagnose,
    Found,
    Goal,
    Trial,
    next_step,
    search_document,
    settings_of,
)
from edgepack_packager.pipeline import Pipeline
from edgepack_targets.interface import Capability, Layer

if TYPE_CHECKING:
    from edgepack_packager.opening import Opened

__all__ = ["Searched", "Searcher", "separate"]


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search came to: the ROUTE to take, and every attempt for the report."""

    route: Route
    chosen: Trial
    document: dict[str, Any]

    def check(self, score: Score, limit: float | None) -> None:
        """Check that what was chosen keeps LIMIT on samples that the search never saw.

        Raises:
            AccuracyError: it does not. No other candidate is tried: that would be searching there.
        """
        try:
            check_drop(score.reference, score.this, limit)
        except AccuracyError as error:
            raise AccuracyError(
                f"what --auto chose loses {score.drop:.4f} on the holdout, more than the {limit:g} "
                "allowed",
                why=f"{_name(self.chosen)} lost {self.chosen.drop:.4f} on the "
                f"{self.document['samples']} samples of the search, and {score.drop:.4f} on "
                f"{score.samples} that it never saw",
                fix="give more samples to --evaluate; trying another one on this holdout would "
                "make it part of the search",
                reason="auto_holdout",
            ) from error


class Searcher:
    """Searches for one build, on samples that nothing else is judged on.

    Args:
        recipe: What was asked for.
        source: Kind and digest of the source.
        opened: With `reference` on the samples to search on.
        capabilities: What each target can do, by name.
        steps: Where workers run.
        work: Temporary directory of the build.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: tuple[str, str],
        opened: Opened,
        capabilities: Mapping[str, Capability],
        steps: Steps,
        work: Path,
    ) -> None:
        self._recipe, self._capabilities = recipe, capabilities
        desk = work / "search"
        desk.mkdir()
        self._prover = Prover(
            steps, desk, opened.reference, metric=recipe.metric, output=opened.face.main.name
        )
        self._pipeline = Pipeline(recipe, source, opened, steps, self._prover, desk)

    def search(self, route: Route) -> Searched:
        """Return the smallest variant of ROUTE's target that keeps the limit.

        Raises:
            AccuracyError: none does (`auto_none`).
            EdgepackError: not one attempt could be made; the first one's error.
        """
        goal = self._goal(route)
        history: list[Trial] = []
        errors: list[EdgepackError] = []
        layers: list[Layer] | None = None
        while True:
            step = next_step(goal, history, layers)
            if isinstance(step, Found):
                break
            if isinstance(step, Diagnose):
                layers = self._layers(self._route(route, Attempt(step.how, "asked"), 0))
            else:
                history.append(self._try(route, step, len(history), errors))
        if step.chosen is None:
            raise _nothing(route, goal, history, errors)
        index = history.index(step.chosen)
        found = self._route(route, step.chosen.attempt, index)
        document = search_document(goal, history, step.chosen)
        document["samples"] = len(next(iter(self._prover.reference.samples.values())))
        return Searched(found, step.chosen, document)

    def _goal(self, route: Route) -> Goal:
        target = route.variant.target
        asked = self._recipe.quantization(route.variant.precision)
        if asked is None or self._recipe.max_drop is None:
            raise UsageError("--auto needs a limit and a precision below fp32", reason="auto")
        others = (v.precision for v in self._recipe.variants if v.target == target)
        artefact, _ = self._pipeline.prove(route.plain)
        return Goal(
            asked,
            self._capabilities[target],
            self._recipe.max_drop,
            artefact.model_bytes,
            frozenset(others) - {asked.precision},
        )

    def _route(self, route: Route, attempt: Attempt, number: int) -> Route:
        if attempt.how is None:
            return route.plain
        base = route.conversion[-1].target
        return route.quantized(attempt.how, f"{base}-{attempt.precision}-auto{number}")

    def _try(
        self, route: Route, attempt: Attempt, number: int, errors: list[EdgepackError]
    ) -> Trial:
        """Build and judge ATTEMPT; what the target cannot make is an outcome, not the end."""
        try:
            artefact, seen = self._pipeline.prove(self._route(route, attempt, number))
        except UnsupportedError as error:
            if error.reason == "stopped":
                raise
            errors.append(error)
            return Trial(attempt, error=error.what)
        score = self._prover.score(seen.answers)
        drop = score.drop if score else None
        return Trial(attempt, artefact.model_bytes, drop, seen.measured.p50)

    def _layers(self, route: Route) -> list[Layer]:
        try:
            return self._pipeline.diagnose(route)
        except UnsupportedError:
            # Without a report of the layers, the search goes on with whole models.
            return []


def _nothing(
    route: Route, goal: Goal, history: list[Trial], errors: list[EdgepackError]
) -> EdgepackError:
    judged = [trial for trial in history if trial.drop is not None]
    if not judged:
        return errors[0]
    nearest = min(judged, key=lambda trial: trial.drop or 0.0)
    built = f"; {', '.join(sorted(goal.taken))} is built anyway" if goal.taken else ""
    return AccuracyError(
        f"none of {len(history)} variants for {route.variant.target} keeps --max-drop "
        f"{goal.limit:g}",
        why=f"the nearest one, {_name(nearest)}, loses {nearest.drop:.4f} on the search "
        f"samples{built}",
        fix="more or better calibration data, or a higher --max-drop",
        reason="auto_none",
    )


def _name(trial: Trial) -> str:
    """Return what was tried in words: `int8 (smooth=True)`."""
    told = ", ".join(f"{k}={v}" for k, v in settings_of(trial.attempt.how).items())
    return f"{trial.attempt.precision} ({told})" if told else trial.attempt.precision


# -- the samples


def separate(
    reference: Reference, holdout: Reference | None, seed: int, warn: Callable[[str], None]
) -> tuple[Reference, Reference]:
    """Return what to search on and what to judge on: REFERENCE and HOLDOUT, or halves of one.

    Samples of the one that are in the other, too, are only searched on.

    Raises:
        UsageError: there is nothing to split, or every sample of HOLDOUT is in REFERENCE too.
    """
    if holdout is None:
        reference, holdout = _halves(reference, seed)
        where = "the half that --auto is judged on"
    else:
        where = "--holdout"
    known = set(_digests(reference))
    new = np.array([digest not in known for digest in _digests(holdout)], bool)
    if not new.any():
        raise UsageError(
            f"{where} has no sample that the search has not, too",
            why="a result on samples that the search saw proves nothing",
            fix="give other samples to --evaluate or --holdout",
            reason="holdout_overlap",
        )
    if not new.all() and holdout.evaluation:
        warn(f"{(~new).sum()} of {len(new)} samples of {where} are left out: the search has them")
        return reference, _part(holdout, holdout.evaluation, np.flatnonzero(new))
    return reference, holdout


def _digests(reference: Reference) -> Iterator[str]:
    count = len(next(iter(reference.samples.values())))
    for row in range(count):
        yield digest_of({name: array[row] for name, array in reference.samples.items()})


def _halves(reference: Reference, seed: int) -> tuple[Reference, Reference]:
    """Return REFERENCE on the samples to search on, and on those to judge on.

    Raises:
        UsageError: there is nothing to split.
    """
    evaluation = reference.evaluation
    if evaluation is None or evaluation.count < 2:
        raise UsageError(
            "--auto needs evaluation data to split into two halves",
            fix="--evaluate val.npz with more samples, or --holdout other.npz",
            reason="no_holdout",
        )
    one, two = split(evaluation.labels, evaluation.count, seed)
    return _part(reference, evaluation, one), _part(reference, evaluation, two)


def _part(reference: Reference, evaluation: Dataset, rows: Rows) -> Reference:
    inputs = {name: array[rows] for name, array in evaluation.inputs.items()}
    labels = {name: array[rows] for name, array in evaluation.labels.items()}
    part = replace(evaluation, inputs=inputs, labels=labels, digest=digest_of(inputs | labels))
    return replace(
        reference,
        samples={name: array[rows] for name, array in reference.samples.items()},
        answers={name: array[rows] for name, array in reference.answers.items()},
        exported={name: array[rows] for name, array in reference.exported.items()},
        evaluation=part,
        probes=(),
    )
