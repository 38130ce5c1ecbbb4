"""`/metrics` for Prometheus: what the runner has counted since it started. Counts nothing itself.

Names follow Prometheus' own rules (base units, `_total`), and `promtool check metrics` agrees.
Imported with the first scrape: a device that nobody scrapes does not pay for it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from edgepack_agent.runner.interface import Model
from edgepack_agent.runner.kernel import temperature_c
from edgepack_agent.runner.statistics import LATENCY_EDGES_MS, Statistics

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """What one scrape tells.

    Args:
        model: What is served.
        statistics: What it did.
        requests: HTTP requests by status.
        waiting: Requests that wait for the model now.
    """

    def __init__(
        self, model: Model, statistics: Statistics, requests: Counter[int], waiting: int
    ) -> None:
        self._model, self._statistics = model, statistics
        self._requests, self._waiting = requests, waiting

    def text(self) -> bytes:
        """Return it in the text format."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield self._bundle()
        yield from self._inference()
        yield _counted("edgepack_http_requests", "HTTP requests.", "code", self._requests)
        yield GaugeMetricFamily(
            "edgepack_queue_depth", "Requests that wait for the model.", value=self._waiting
        )
        yield from _temperature()
        yield from ProcessCollector(registry=None).collect()

    def _bundle(self) -> Metric:
        manifest = self._model.manifest
        labels = {
            "name": manifest.name,
            "version": manifest.version,
            "digest": self._model.digest,
            "target": manifest.target.runtime,
            "precision": manifest.target.precision,
        }
        family = GaugeMetricFamily("edgepack_bundle_info", "What is served.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family

    def _inference(self) -> Iterator[Metric]:
        total = self._statistics.total()
        edges = [f"{ms / 1000:g}" for ms in LATENCY_EDGES_MS]
        heights = accumulate(total.latency)
        duration = HistogramMetricFamily(
            "edgepack_inference_duration_seconds", "Time of a call of the runtime."
        )
        buckets = list(zip([*edges, "+Inf"], heights, strict=True))
        duration.add_metric([], buckets, sum_value=total.seconds)
        yield duration
        yield _counted("edgepack_errors", "What gave no answer.", "reason", total.errors)
        yield _counted("edgepack_model_classes", "Decisions.", "label", total.classes)


def _counted(name: str, told: str, label: str, counts: Counter[int] | Counter[str]) -> Metric:
    family = CounterMetricFamily(name, told, labels=[label])
    for value, count in sorted(counts.items(), key=lambda pair: str(pair[0])):
        family.add_metric([str(value)], count)
    return family


def _temperature() -> Iterable[Metric]:
    degrees = temperature_c()
    if degrees is not None:
        yield GaugeMetricFamily(
            "edgepack_temperature_celsius", "The hottest thermal zone.", value=degrees
        )
