"""What Prometheus is told of the fleet: sums by group and release, never a series per device.

Ten thousand devices with thirty series each would be more than most Prometheus servers hold; how
one device does is asked over REST.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edgepack.counting import FAULTS, SCRAPED_EDGES_MS
from edgepack_fleet.adapters.alert_tables import AlertRow
from edgepack_fleet.adapters.database import Database
from edgepack_fleet.adapters.rollup_tables import EVER, GroupRollup
from edgepack_fleet.adapters.tables import DeviceRow, JobRow, RolloutRow
from edgepack_fleet.core.histograms import between, like

__all__ = ["NAMES", "Standing", "exposition"]

BY = ("group", "release")
MOST = 1000
"""Variants of releases in groups that are told of, the busiest ones."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is not in the database."""

    data: Path
    """The fleet's directory."""
    connected: bool
    refused: Mapping[str, int]
    """Messages of devices that were not taken, by cause."""
    left_out: Mapping[str, int]
    """Reports of which something is not told apart, by reason."""


def exposition(database: Database, standing: Standing) -> bytes:
    """Return all metrics of a fleet in the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Fleet(database, standing))
    return generate_latest(registry)


class _Fleet(Collector):
    """Reads the database when it is asked; keeps nothing."""

    def __init__(self, database: Database, standing: Standing) -> None:
        self._database, self._standing = database, standing

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        standing = self._standing
        with self._database.read() as session:
            yield from _devices(session)
            yield from _work(session)
            yield _count(session, "edgepack_fleet_rollouts", "Rollouts by state", RolloutRow.state)
            yield _count(session, "edgepack_fleet_jobs", "Updates by status", JobRow.status)
            yield from _alerts(session)
        yield _gauge("edgepack_fleet_broker_up", "Whether there is a link to the broker",
                     float(standing.connected))  # fmt: skip
        refused = CounterMetricFamily(
            "edgepack_fleet_refused_messages", "Messages of devices not taken", labels=["reason"]
        )
        for reason, count in sorted(standing.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        left_out = CounterMetricFamily(
            "edgepack_fleet_unexpected_reports",
            "Reports with names or edges that their model does not have",
            labels=["reason"],
        )
        for reason, count in sorted(standing.left_out.items()):
            left_out.add_metric([reason], count)
        yield left_out
        disk = shutil.disk_usage(standing.data)
        yield _gauge("edgepack_fleet_disk_free_bytes", "Free on the fleet's disk", disk.free)
        yield _gauge("edgepack_fleet_disk_size_bytes", "Size of the fleet's disk", disk.total)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _devices(session: Session) -> Iterator[Metric]:
    known = GaugeMetricFamily(
        "edgepack_fleet_devices", "Devices by connection", labels=["group", "state"]
    )
    query = select(DeviceRow.group_id, DeviceRow.online, func.count())
    standing = query.where(DeviceRow.revoked.is_(None))
    for group, online, count in session.execute(
        standing.group_by(DeviceRow.group_id, DeviceRow.online)
    ):
        known.add_metric([group, "online" if online else "offline"], count)
    yield known
    running = GaugeMetricFamily(
        "edgepack_fleet_devices_running", "Devices by the release they report", labels=BY
    )
    by_release = select(DeviceRow.group_id, DeviceRow.bundle, func.count()).where(
        DeviceRow.revoked.is_(None), DeviceRow.bundle.is_not(None)
    )
    for group, release, count in session.execute(
        by_release.group_by(DeviceRow.group_id, DeviceRow.bundle)
    ):
        running.add_metric([group, str(release)], count)
    yield running


def _work(session: Session) -> Iterator[Metric]:
    """Yield what was added up since the beginning: it never goes back, as counters must not."""
    inferences = CounterMetricFamily("edgepack_fleet_inferences", "Answers of models", labels=BY)
    errors = CounterMetricFamily(
        "edgepack_fleet_inference_errors", "Errors of models", labels=[*BY, "reason"]
    )
    others = CounterMetricFamily(
        "edgepack_fleet_other_errors", "Of clients, cameras, full queues", labels=[*BY, "reason"]
    )
    throttled = CounterMetricFamily(
        "edgepack_fleet_throttled_seconds", "Seconds with a slowed processor", labels=BY
    )
    lost = CounterMetricFamily(
        "edgepack_fleet_lost_reports", "Rows of telemetry thrown away by devices", labels=BY
    )
    latency = HistogramMetricFamily(
        "edgepack_fleet_latency_seconds", "Latency of runtime calls", labels=BY
    )
    for (group, release), rows in _ever(session).items():
        labels = [group, release]
        inferences.add_metric(labels, sum(row.inferences for row in rows))
        throttled.add_metric(labels, sum(row.throttled_s for row in rows))
        lost.add_metric(labels, sum(row.lost for row in rows))
        reasons: dict[str, int] = {}
        for row in rows:
            for reason, count in row.reasons.items():
                reasons[reason] = reasons.get(reason, 0) + count
        for reason, count in sorted(reasons.items()):
            metric = errors if reason in FAULTS else others
            metric.add_metric([*labels, reason], count)
        _observe(latency, labels, rows)
    yield from (inferences, errors, others, throttled, lost, latency)


def _ever(session: Session) -> dict[tuple[str, str], list[GroupRollup]]:
    query = select(GroupRollup).where(GroupRollup.span == EVER, GroupRollup.bundle != "")
    found: dict[tuple[str, str], list[GroupRollup]] = {}
    # What a device calls its bundle is its own word: nobody may make series without end.
    for row in session.scalars(query.order_by(GroupRollup.inferences.desc()).limit(MOST)):
        found.setdefault((row.group_id, row.bundle), []).append(row)
    return found


def _observe(metric: HistogramMetricFamily, labels: list[str], rows: list[GroupRollup]) -> None:
    # On edges that all rows have, however old: what is told must never fall.
    histogram, _ = like(between(row.latency, SCRAPED_EDGES_MS) for row in rows)
    if histogram is None:
        return
    buckets, seen = [], 0
    for edge, count in zip([*histogram["edges"], None], histogram["counts"], strict=True):
        seen += count
        buckets.append(("+Inf" if edge is None else f"{edge / 1000:g}", float(seen)))
    # Devices tell counts, not times: the sum is that of the lower edges, and never too high.
    lows = [0.0, *histogram["edges"]]
    total = sum(low * count for low, count in zip(lows, histogram["counts"], strict=True))
    metric.add_metric(labels, buckets, total / 1000)


def _count(session: Session, name: str, text: str, column: object) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=["state"])
    query = select(column, func.count()).group_by(column)  # type: ignore[call-overload]
    for state, count in session.execute(query):
        metric.add_metric([state], count)
    return metric


def _alerts(session: Session) -> Iterator[Metric]:
    metric = GaugeMetricFamily(
        "edgepack_fleet_alerts",
        "Alerts of the fleet's own rules",
        labels=["rule", "severity", "state"],
    )
    query = select(AlertRow.rule, AlertRow.severity, AlertRow.state, func.count())
    for rule, severity, state, count in session.execute(
        query.group_by(AlertRow.rule, AlertRow.severity, AlertRow.state)
    ):
        metric.add_metric([rule, severity, state], count)
    yield metric


NAMES = (
    "edgepack_fleet_devices",
    "edgepack_fleet_devices_running",
    "edgepack_fleet_inferences_total",
    "edgepack_fleet_inference_errors_total",
    "edgepack_fleet_other_errors_total",
    "edgepack_fleet_throttled_seconds_total",
    "edgepack_fleet_lost_reports_total",
    "edgepack_fleet_latency_seconds_bucket",
    "edgepack_fleet_latency_seconds_count",
    "edgepack_fleet_latency_seconds_sum",
    "edgepack_fleet_rollouts",
    "edgepack_fleet_jobs",
    "edgepack_fleet_alerts",
    "edgepack_fleet_broker_up",
    "edgepack_fleet_refused_messages_total",
    "edgepack_fleet_unexpected_reports_total",
    "edgepack_fleet_disk_free_bytes",
    "edgepack_fleet_disk_size_bytes",
)
"""Every series by its full name."""
