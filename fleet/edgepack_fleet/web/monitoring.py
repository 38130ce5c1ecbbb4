"""The REST interface to monitoring: health, drift, comparison. Routes only."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from edgepack.errors import UsageError
from edgepack_fleet import insights
from edgepack_fleet.core.drifting import Drift, Rule, outlook
from edgepack_fleet.core.plainly import agreement_said, errors_said, latency_said
from edgepack_fleet.core.slots import DAY, FINE, HOUR
from edgepack_fleet.service import Service
from edgepack_fleet.web import monitoring_schemas as schemas
from edgepack_fleet.web.guard import PREFIX, Viewer, service_of
from edgepack_fleet.windows import Window

__all__ = ["router"]

DAY_S = 86_400.0
STEPS = {"5m": FINE, "1h": HOUR, "1d": DAY}

Fleet = Annotated[Service, Depends(service_of)]
router = APIRouter(prefix=PREFIX, dependencies=[Viewer])


@router.get("/releases/{release}/health")
def release_health(
    fleet: Fleet, release: str, asked: Annotated[schemas.HealthQuery, Query()]
) -> schemas.ReleaseHealth:
    """Say how a release does: errors, latencies, memory, updates, with a series over time."""
    window = _window(fleet, release, asked, asked.device)
    with fleet.database.read() as db:
        found = insights.health_of(db, window, STEPS.get(asked.step or ""))
    if not found.reporting.devices:
        fleet.rollouts.release(release)  # refused, if there is no such release
    facts = asdict(found.health)
    return schemas.ReleaseHealth(
        **_where(window),
        **asdict(found.reporting),
        **facts,
        installs=schemas.Installs(**asdict(found.installs)),
        rollbacks=found.rollbacks,
        agreement=schemas.Agreement(**asdict(found.agreement)) if found.agreement else None,
    )


@router.get("/releases/{release}/drift")
def release_drift(
    fleet: Fleet, release: str, asked: Annotated[schemas.DriftQuery, Query()]
) -> schemas.DriftReport:
    """Say whether what a release sees and says is no longer what it was, feature by feature."""
    window = _window(fleet, release, asked, asked.device)
    back = asked.before or window.until - window.since
    before = Window(
        release, window.since - back, window.until - back, window.group, window.device
    ) if asked.against == "window" else None  # fmt: skip
    rule = Rule(asked.min_count, asked.psi, asked.p)
    with fleet.database.read() as db:
        found = insights.drift_of(db, window, fleet.baselines.of, rule, before)
    if not found:
        fleet.rollouts.release(release)
    far = {d.feature for v in found for d in v.features if d.verdict == "drift"}
    variants = [
        schemas.VariantDrift(
            digest=v.digest, against=v.against, features=[_feature(d) for d in v.features]
        )
        for v in found
    ]
    together = outlook([drift for v in found for drift in v.features])
    return schemas.DriftReport(
        **_where(window), **asdict(together), drifting=sorted(far), variants=variants
    )


@router.get("/releases/{release}/compare")
def compare_releases(
    fleet: Fleet, release: str, asked: Annotated[schemas.CompareQuery, Query()]
) -> schemas.Comparison:
    """Say how `other` (B) differs from the release (A), and how sure that is."""
    a, b = (_window(fleet, name, asked) for name in (release, asked.other))
    with fleet.database.read() as db:
        found = insights.compare(db, a, b)
    for window, devices in zip((a, b), found.devices, strict=False):
        if not devices:
            fleet.rollouts.release(window.release)
    said = [
        errors_said(found.errors),
        latency_said("p50", found.p50),
        latency_said("p95", found.p95),
        agreement_said(found.agreement),
    ]
    facts: dict[str, Any] = {
        name: schemas.Interval(**asdict(interval)) if interval else None
        for name, interval in (
            ("errors", found.errors),
            ("p50_ratio", found.p50),
            ("p95_ratio", found.p95),
            ("agreement", found.agreement),
        )
    }
    return schemas.Comparison(
        a=release,
        b=asked.other,
        group=asked.group,
        since=a.since,
        until=a.until,
        devices_a=found.devices[0],
        devices_b=found.devices[1],
        devices_both=found.devices[2],
        error_rate_a=found.error_rates[0],
        error_rate_b=found.error_rates[1],
        said=said,
        **facts,
    )


def _window(
    fleet: Service, release: str, asked: schemas.WindowQuery, device: str | None = None
) -> Window:
    until = fleet.now() if asked.until is None else asked.until
    since = until - DAY_S if asked.since is None else asked.since
    if since >= until:
        raise UsageError("`since` is not before `until`", reason="bad_window")
    return Window(release, since, until, asked.group, device)


def _where(window: Window) -> dict[str, Any]:
    return asdict(window)


def _feature(drift: Drift) -> schemas.FeatureDrift:
    facts = {name: getattr(drift, name) for name in ("feature", "verdict", "psi", "p", "adjusted")}
    return schemas.FeatureDrift(
        **facts,
        before=drift.before,
        now=drift.now,
        lack=schemas.Lack(**asdict(drift.lack)) if drift.lack else None,
        names=list(drift.seen.names),
        counts_before=list(drift.seen.before),
        counts_now=list(drift.seen.now),
    )
