"""How releases do: their health, whether they drift, how two of them differ. Reads the database.

What is said of it is decided in `core`; here it is put together.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from edgepack_fleet.adapters.tables import EventRow, JobRow
from edgepack_fleet.core import comparison, drifting
from edgepack_fleet.core.comparison import Interval
from edgepack_fleet.core.drifting import Drift, Rule, Seen
from edgepack_fleet.core.health import Agreement, Health, agreement, health, step_for
from edgepack_fleet.core.histograms import merged
from edgepack_fleet.core.measures import metrics
from edgepack_fleet.core.model import FAILURES
from edgepack_fleet.core.sums import Sums, total
from edgepack_fleet.windows import Entry, Reporting, Window, entries, per_device, reporting, within
from edgepack_targets.pipeline.baseline import Baseline

__all__ = [
    "Compared",
    "Installs",
    "ReleaseHealth",
    "VariantDrift",
    "compare",
    "drift_of",
    "health_of",
    "rollbacks",
]


Against = Literal["baseline", "window", ""]


@dataclass(frozen=True, slots=True)
class Installs:
    """What became of the updates to a release that ended in a window."""

    succeeded: int
    failed: Mapping[str, int]
    """By reason."""


@dataclass(frozen=True, slots=True)
class ReleaseHealth:
    """How a release does in a window."""

    reporting: Reporting
    health: Health
    installs: Installs
    rollbacks: int
    """How often a device went back to the model before, after this one had answered."""
    agreement: Agreement | None


@dataclass(frozen=True, slots=True)
class VariantDrift:
    """What is said of the features of one variant."""

    digest: str
    against: Against
    """`baseline`, `window`, or empty: there is nothing to compare with."""
    features: Sequence[Drift]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two releases, A and B."""

    devices: tuple[int, int, int]
    """That ran A, B, both."""
    error_rates: tuple[float | None, float | None]
    errors: Interval | None
    """Error rate of B less that of A."""
    p50: Interval | None
    """Of B to that of A."""
    p95: Interval | None
    agreement: Interval | None
    """Of B with A, by devices that ran both beside each other."""


def health_of(session: Session, window: Window, step: int | None) -> ReleaseHealth:
    """Return how a release does in WINDOW, with a series of STEP seconds; None: what fits."""
    step = step or step_for(window.until - window.since)
    jobs = _jobs(session, window)
    return ReleaseHealth(
        reporting=reporting(session, window),
        health=health([(e.slot, e.sums) for e in entries(session, window)], step),
        installs=_installs(jobs),
        rollbacks=rollbacks(session, window),
        agreement=agreement(list(_agreements(jobs))),
    )


def rollbacks(session: Session, window: Window) -> int:
    """Return how often a device went back from the release after it had answered."""
    query = select(EventRow.body).where(
        EventRow.type == "rolled_back",
        EventRow.received >= window.since,
        EventRow.received < window.until,
    )
    query = query.where(*within(session, EventRow.device_id, window))
    return sum(_tried(body) == window.release for body in session.scalars(query))


def drift_of(
    session: Session,
    window: Window,
    baseline: Callable[[str], Baseline | None],
    rule: Rule,
    before: Window | None = None,
) -> list[VariantDrift]:
    """Return what is said of every variant of a release in WINDOW.

    Args:
        session: A database session.
        window: What is looked at.
        baseline: Returns what a bundle was built with, by digest.
        rule: What counts as drift.
        before: What is compared with instead of the baselines.
    """
    now = _by_digest(entries(session, window))
    earlier = _by_digest(entries(session, before)) if before else {}
    seen: dict[str, tuple[Against, list[Seen]]] = {}
    for digest, sums in now.items():
        known = baseline(digest) if before is None else None
        if before is not None and digest in earlier:
            seen[digest] = ("window", drifting.of_windows(_parts(earlier[digest]), _parts(sums)))
        elif known is not None:
            seen[digest] = ("baseline", drifting.seen_of(known, *_parts(sums)))
        else:
            seen[digest] = ("", [])
    return list(_judged(seen, rule))


def compare(session: Session, a: Window, b: Window) -> Compared:
    """Return how the release of B differs from that of A."""
    one, other = _devices(session, a), _devices(session, b)
    pairs = [
        (one[d].latency if d in one else None, other[d].latency if d in other else None)
        for d in sorted(one.keys() | other.keys())
    ]
    shares = [
        comparison.effective([comparison.Asked(s.inferences + s.errors, s.errors) for s in side])
        for side in (one.values(), other.values())
    ]
    # The same question gets the same answer: draws follow from what is compared.
    seed = zlib.crc32(f"{a.release} {b.release}".encode())
    agreed = list(_agreements(_jobs(session, b), before=a.release))
    return Compared(
        devices=(len(one), len(other), len(one.keys() & other.keys())),
        error_rates=(shares[0] and shares[0].value, shares[1] and shares[1].value),  # type: ignore[arg-type]
        errors=comparison.difference(shares[0], shares[1]) if shares[0] and shares[1] else None,
        p50=comparison.ratio(pairs, 0.5, seed),
        p95=comparison.ratio(pairs, 0.95, seed),
        agreement=comparison.mean_interval(agreed),
    )


def _judged(seen: Mapping[str, tuple[Against, list[Seen]]], rule: Rule) -> Iterator[VariantDrift]:
    """Yield verdicts by variant; all features of all variants are one look."""
    every = [feature for _, found in seen.values() for feature in found]
    told = drifting.verdicts(every, rule)
    for digest, (against, found) in seen.items():
        mine = [drift for drift in told if any(drift.seen is one for one in found)]
        yield VariantDrift(digest, against, mine)


def _by_digest(found: Sequence[Entry]) -> dict[str, Sums]:
    apart: dict[str, list[Sums]] = {}
    for entry in found:
        apart.setdefault(entry.digest, []).append(entry.sums)
    return {digest: total(sums) for digest, sums in sorted(apart.items())}


def _parts(sums: Sums) -> tuple[Mapping[str, int], Any, Mapping[str, Sequence[int]]]:
    return sums.classes, sums.confidence, sums.features


@dataclass(slots=True)
class _OfDevice:
    inferences: int = 0
    errors: int = 0
    latency: Mapping[str, Any] | None = None


def _devices(session: Session, window: Window) -> dict[str, _OfDevice]:
    found: dict[str, _OfDevice] = {}
    for device, inferences, errors, latency in per_device(session, window):
        mine = found.setdefault(device, _OfDevice())
        mine.inferences, mine.errors = mine.inferences + inferences, mine.errors + errors
        mine.latency = merged(mine.latency, latency)
    return found


def _jobs(session: Session, window: Window) -> Sequence[JobRow]:
    """Return the updates to the release that changed last in WINDOW."""
    query = select(JobRow).where(
        JobRow.release == window.release,
        JobRow.kind == "install",
        JobRow.updated >= window.since,
        JobRow.updated < window.until,
    )
    return session.scalars(query.where(*within(session, JobRow.device_id, window))).all()


def _installs(jobs: Sequence[JobRow]) -> Installs:
    failed: dict[str, int] = {}
    for job in jobs:
        if job.status in FAILURES:
            reason = job.reason or job.status.lower()
            failed[reason] = failed.get(reason, 0) + 1
    return Installs(sum(job.status == "SUCCEEDED" for job in jobs), failed)


def _agreements(jobs: Sequence[JobRow], before: str | None = None) -> Iterator[float]:
    """Yield the agreement of every job that tells one, if it replaced the release BEFORE."""
    for job in jobs:
        found = metrics(job.measured, job.detail).get("agreement")
        if found is not None and (before is None or job.before.get("release") == before):
            yield found


def _tried(body: Mapping[str, Any]) -> Any:
    detail = body.get("detail")
    return detail.get("release") if isinstance(detail, Mapping) else None
