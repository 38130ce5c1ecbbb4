"""How one device behaves: what it is like, what it measures, how a job goes on it. Pure.

What it measures comes from a generator that the caller owns, seeded by the number of the device.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgepack.counting import LATENCY_EDGES_MS
from edgepack.messages import Histogram, Job
from edgepack_fleet.simulation.scenario import Model, Scenario

__all__ = ["Measured", "Step", "Traits", "measure", "steps", "traits"]

SAMPLED = 24
"""Latencies that are drawn for a report; the rest of its inferences are spread like them."""
SHADOW_PER_S = 5.0
GOOD = Model()


@dataclass(frozen=True, slots=True)
class Traits:
    """What is peculiar to one device."""

    slow: float
    """By how much it takes longer to install."""
    silent: bool
    offline: bool
    checks: bool
    luck: float
    """In 0..1: a release that affects a share of devices affects those below it."""

    def model(self, scenario: Scenario, release: str | None) -> Model:
        """Return how RELEASE behaves on this device."""
        model = scenario.model(release)
        return model if self.luck < model.affected else GOOD


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device has measured of its model in an interval."""

    inferences: int
    errors: dict[str, int]
    latency_ms: Histogram


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a job: what the device says, after how many seconds."""

    after_s: float
    state: str
    status: str = "IN_PROGRESS"
    reason: str = ""
    detail: dict[str, Any] | None = None


def traits(scenario: Scenario, number: int) -> Traits:
    """Return what the device NUMBER of SCENARIO is like."""
    draw, faults = random.Random(f"{scenario.seed}:{number}"), scenario.faults  # noqa: S311
    slow, silent, offline, checks, luck = (draw.random() for _ in range(5))
    return Traits(
        slow=faults.slow_factor if slow < faults.slow else 1.0,
        silent=silent < faults.silent,
        offline=offline < faults.offline,
        checks=checks < scenario.checks,
        luck=luck,
    )


def measure(scenario: Scenario, model: Model, seconds: float, draw: random.Random) -> Measured:
    """Return what MODEL does in SECONDS; the sum of the histogram is the number of inferences."""
    asked = int(scenario.inferences_per_s * seconds + draw.random())
    failed = sum(draw.random() < model.errors for _ in range(asked)) if model.errors else 0
    answered = asked - failed
    counts = [0] * (len(LATENCY_EDGES_MS) + 1)
    share, rest = divmod(answered, SAMPLED)
    for index in range(min(SAMPLED, answered)):
        latency = draw.lognormvariate(0.0, 0.2) * scenario.latency_ms * model.latency
        counts[bisect_right(LATENCY_EDGES_MS, latency)] += share + (index < rest)
    errors = {"runtime_error": failed} if failed else {}
    return Measured(answered, errors, Histogram(edges=LATENCY_EDGES_MS, counts=tuple(counts)))


def steps(job: Job, scenario: Scenario, known: Traits, draw: random.Random) -> Iterator[Step]:
    """Yield how JOB goes on the device that is KNOWN so, to its end."""
    model = known.model(scenario, job.release)
    whole = draw.uniform(*scenario.install_s) * known.slow
    detail: dict[str, Any] = {"exam": [{"score": _near(model.exam, 0.005, draw)}]}
    yield Step(0.0, "downloading")
    yield Step(0.7 * whole, "self_test")
    if job.shadow is not None:
        yield Step(0.3 * whole, "shadow", detail=detail)
        detail["shadow"] = [_compared(job.shadow.seconds, model, draw)]
        yield Step(job.shadow.seconds, "probation", detail=detail)
    else:
        yield Step(0.3 * whole, "probation", detail=detail)
    if draw.random() < model.fails:
        yield Step(job.probation_s / 2, "probation", "FAILED", "error_rate", detail)
    else:
        yield Step(job.probation_s, "committed", "SUCCEEDED", detail=detail)


def _compared(seconds: float, model: Model, draw: random.Random) -> dict[str, Any]:
    return {
        "samples": max(20, int(seconds * SHADOW_PER_S)),
        "agreement": _near(model.agreement, 0.01, draw),
        "p95_ratio": round(model.latency * draw.uniform(0.97, 1.03), 4),
    }


def _near(value: float, spread: float, draw: random.Random) -> float:
    return round(min(1.0, max(0.0, draw.gauss(value, spread))), 4)
