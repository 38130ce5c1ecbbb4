"""`/metrics` for Prometheus: what the runner has counted since it started. Counts nothing itself.

Names follow Prometheus' own rules (base units, `_total`), and `promtool check metrics` agrees.
Imported with the first scrape: a device that nobody scrapes does not pay for it.
"""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from math import inf

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from edgepack.counting import LATENCY_EDGES_MS, SCRAPED_EDGES_MS
from edgepack_agent.runner.families import Family
from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.kernel import temperature_c
from edgepack_agent.runner.statistics import Statistics, Total

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """What one scrape tells.

    Args:
        model: What is served.
        statistics: What it did.
        families: What the other parts of the runner tell.
    """

    def __init__(self, model: Model, statistics: Statistics, families: Iterable[Family]) -> None:
        self._model, self._statistics, self._families = model, statistics, families

    def text(self) -> bytes:
        """Return it in the text format."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        total = self._statistics.total()
        yield _duration(total)
        for family in (self._bundle(), *_counts(total), *_temperature(), *self._families):
            yield _metric(family)
        yield from ProcessCollector(registry=None).collect()

    def _bundle(self) -> Family:
        manifest = self._model.manifest
        labels = {
            "name": manifest.name,
            "version": manifest.version,
            "digest": self._model.digest,
            "target": manifest.target.runtime,
            "precision": manifest.target.precision,
        }
        samples = {tuple(labels.values()): 1.0}
        return Family("edgepack_bundle_info", "What is served.", samples, tuple(labels))


def _metric(family: Family) -> Metric:
    kind = CounterMetricFamily if family.counter else GaugeMetricFamily
    metric = kind(family.name, family.told, labels=family.labels)
    for values, number in sorted(family.samples.items()):
        metric.add_metric(values, number)
    return metric


def _duration(total: Total) -> Metric:
    duration = HistogramMetricFamily(
        "edgepack_inference_duration_seconds", "Time of a call of the runtime."
    )
    below = dict(zip([*LATENCY_EDGES_MS, inf], accumulate(total.latency), strict=True))
    buckets = [(f"{ms / 1000:g}", below[ms]) for ms in SCRAPED_EDGES_MS]
    buckets.append(("+Inf", below[inf]))
    duration.add_metric([], buckets, sum_value=total.seconds)
    return duration


def _counts(total: Total) -> Iterator[Family]:
    errors = {(reason,): float(count) for reason, count in total.errors.items()}
    yield Family("edgepack_errors", "What gave no answer.", errors, ("reason",), counter=True)
    classes = {(label,): float(count) for label, count in total.classes.items()}
    yield Family("edgepack_model_classes", "Decisions.", classes, ("label",), counter=True)


def _temperature() -> Iterator[Family]:
    degrees = temperature_c()
    if degrees is not None:
        told = "The hottest thermal zone."
        yield Family("edgepack_temperature_celsius", told, {(): degrees})
