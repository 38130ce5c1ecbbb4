"""What alerts are judged by, measured: one value for each thing that a rule watches."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from cryptography import x509
from sqlalchemy import Integer, cast, func, select
from sqlalchemy.orm import Session

from edgepack_fleet import insights
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.tables import DeviceRow
from edgepack_fleet.core.alerts import Reading
from edgepack_fleet.core.drifting import Rule as DriftRule
from edgepack_fleet.core.health import health
from edgepack_fleet.core.histograms import Histogram, like, p95_ratio
from edgepack_fleet.core.slots import DAY, FINE, HOUR
from edgepack_fleet.windows import Entry, Window, entries, releases
from edgepack_targets.pipeline.baseline import Baseline

__all__ = ["Readings"]

RECENT_S = 900.0
MIN_ASKED, MIN_UPDATES = 50, 3
SLOW_S = 600.0
"""Seconds between two looks at what takes long: drift, certificates."""
Labels = Mapping[str, str]


class Readings:
    """Measures the fleet of DATABASE, whose files are in DATA.

    Args:
        database: What is known.
        data: The fleet's directory.
        baseline: Returns what a bundle was built with, by digest.
        connected: Whether there is a link to the broker.
    """

    def __init__(
        self,
        database: Database,
        data: Path,
        baseline: Callable[[str], Baseline | None],
        connected: Callable[[], bool],
    ) -> None:
        self._database, self._data = database, data
        self._baseline, self._connected = baseline, connected
        self._slow: list[Reading] = []
        self._looked: float | None = None

    def take(self, now: float) -> list[Reading]:
        """Return all values that there are NOW (Unix seconds)."""
        with self._database.read() as session:
            if self._looked is None or not 0 <= now - self._looked < SLOW_S:
                self._looked = now
                self._slow = [*self._drift(session, now), *_certificates(session, now)]
            found = [*_offline(session), *_of_releases(session, now), *self._slow]
        usage = shutil.disk_usage(self._data)
        found.append(Reading("disk_free_share", {}, usage.free / usage.total))
        return [*found, Reading("broker_up", {}, float(self._connected()))]

    def _drift(self, session: Session, now: float) -> Iterator[Reading]:
        since = now - 6 * HOUR
        for release in dict.fromkeys(bundle for bundle, _ in releases(session, since)):
            window = Window(release, since, now)
            found = insights.drift_of(session, window, self._baseline, DriftRule())
            if any(variant.against for variant in found):
                far = {d.feature for v in found for d in v.features if d.verdict == "drift"}
                yield Reading("drift_features", {"release": release}, float(len(far)))


def _offline(session: Session) -> Iterator[Reading]:
    query = select(
        DeviceRow.group_id, func.count(), func.sum(cast(DeviceRow.online, Integer))
    ).where(DeviceRow.revoked.is_(None))
    for group, count, online in session.execute(query.group_by(DeviceRow.group_id)):
        yield Reading("offline_share", {"group": group}, 1 - (online or 0) / count)


def _certificates(session: Session, now: float) -> Iterator[Reading]:
    query = select(DeviceRow.group_id, DeviceRow.certificate)
    ends: dict[str, float] = {}
    for group, pem in session.execute(query.where(DeviceRow.revoked.is_(None))):
        if pem:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            end = certificate.not_valid_after_utc.timestamp()
            ends[group] = min(end, ends.get(group, end))
    for group, end in ends.items():
        yield Reading("certificate_days", {"group": group}, (end - now) / DAY)


def _of_releases(session: Session, now: float) -> Iterator[Reading]:
    for release, group in releases(session, now - RECENT_S):
        labels = {"release": release, "group": group}
        yield from _rates(session, Window(release, now - RECENT_S, now, group), labels)
    for release in dict.fromkeys(bundle for bundle, _ in releases(session, now - DAY)):
        found = insights.health_of(session, Window(release, now - DAY, now), DAY)
        updates = found.installs.succeeded + sum(found.installs.failed.values())
        if updates >= MIN_UPDATES:
            share = min(1.0, found.rollbacks / updates)
            yield Reading("rollback_rate", {"release": release}, share)


def _rates(session: Session, window: Window, labels: Labels) -> Iterator[Reading]:
    now = list(entries(session, window))
    recent = health([(e.slot, e.sums) for e in now], FINE)
    if recent.inferences + recent.errors >= MIN_ASKED and recent.error_rate is not None:
        yield Reading("error_rate", labels, recent.error_rate)
    before = Window(window.release, window.since - DAY, window.since, window.group)
    ratio = p95_ratio(_latency(entries(session, before)), _latency(now), MIN_ASKED)
    if ratio is not None:
        yield Reading("p95_ratio", labels, ratio)


def _latency(found: Iterable[Entry]) -> Histogram | None:
    return like(entry.sums.latency for entry in found)[0]
