"""How fast and how hungry a loaded model is: percentiles, medians, peak memory, one document.

The same for `edgepack benchmark` on a host and `edgepack-agent benchmark` on a device, so that
their numbers can be laid side by side. Starts no process (see `fresh`) and loads no model.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec

from edgepack.manifest import Manifest
from edgepack_targets.machine import Machine, describe_machine

__all__ = [
    "Benchmark",
    "EffectiveFacts",
    "Latency",
    "Run",
    "benchmark_document",
    "benchmark_rows",
    "latency",
    "median_run",
    "peak_rss_mb",
]

STATUS = Path("/proc/self/status")


class Latency(TypedDict):
    """Milliseconds of one inference of one sample."""

    p50: Annotated[float, msgspec.Meta(ge=0)]
    p95: Annotated[float, msgspec.Meta(ge=0)]


class EffectiveFacts(TypedDict):
    """What a session really ran with, asked of the runtime."""

    runtime: str
    version: str
    precision: str
    device: str
    threads: int
    hint: NotRequired[str]


class Run(TypedDict):
    """One fresh process: load, first inference, then one inference after another."""

    load_ms: float
    first_ms: float
    latency_ms: Latency
    throughput_per_s: float
    peak_rss_mb: Annotated[float, msgspec.Meta(description="10^6 bytes, of the whole process")]
    inferences: int


class Benchmark(TypedDict):
    """What `edgepack benchmark --json` and `edgepack-agent benchmark --json` print.

    The numbers at the top are the medians of `runs`.
    """

    schema: Literal["edgepack.benchmark/v1"]
    bundle: Annotated[str, msgspec.Meta(description="name@version")]
    digest: str
    target: str
    precision: str
    threads: Annotated[int | None, msgspec.Meta(description="As asked; null: runtime's choice")]
    load_ms: float
    first_ms: float
    latency_ms: Latency
    throughput_per_s: float
    peak_rss_mb: float
    runs: list[Run]
    effective: EffectiveFacts
    host: Machine


def latency(times: Sequence[float]) -> Latency:
    """Return p50 and p95 of TIMES, interpolated linearly between neighbours."""
    ordered = sorted(times)
    return {"p50": _percentile(ordered, 0.5), "p95": _percentile(ordered, 0.95)}


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def median_run(runs: Sequence[Run]) -> Run:
    """Return the median of each number of RUNS: one process may be unlucky."""
    return {
        "load_ms": median(run["load_ms"] for run in runs),
        "first_ms": median(run["first_ms"] for run in runs),
        "latency_ms": {
            "p50": median(run["latency_ms"]["p50"] for run in runs),
            "p95": median(run["latency_ms"]["p95"] for run in runs),
        },
        "throughput_per_s": median(run["throughput_per_s"] for run in runs),
        "peak_rss_mb": median(run["peak_rss_mb"] for run in runs),
        "inferences": sum(run["inferences"] for run in runs),
    }


def peak_rss_mb() -> float:
    """Return the largest resident memory that this process ever had, in 10^6 bytes.

    Not `ru_maxrss`: Linux carries that over from the parent when a program is started, so a
    small process of a large one would look large. 0 where the kernel does not say.
    """
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return 0.0


def benchmark_document(
    manifest: Manifest,
    digest: str,
    runs: Sequence[Run],
    effective: EffectiveFacts,
    threads: int | None,
) -> Benchmark:
    """Return the document of RUNS of the bundle with MANIFEST and DIGEST on this machine."""
    middle = median_run(runs)
    return {
        "schema": "edgepack.benchmark/v1",
        "bundle": manifest.release,
        "digest": digest,
        "target": manifest.target.runtime,
        "precision": manifest.target.precision,
        "threads": threads,
        "load_ms": middle["load_ms"],
        "first_ms": middle["first_ms"],
        "latency_ms": middle["latency_ms"],
        "throughput_per_s": middle["throughput_per_s"],
        "peak_rss_mb": middle["peak_rss_mb"],
        "runs": list(runs),
        "effective": effective,
        "host": describe_machine(),
    }


def benchmark_rows(said: Benchmark) -> dict[str, str]:
    """Return SAID in words, a fact a line, for people."""
    ran, host = said["effective"], said["host"]
    threads = f"{ran['threads']} threads" if ran["threads"] else "the runtime's threads"
    p50s = [run["latency_ms"]["p50"] for run in said["runs"]]
    return {
        "load": f"{said['load_ms']:.1f} ms",
        "first inference": f"{said['first_ms']:.2f} ms",
        "latency p50 / p95": f"{said['latency_ms']['p50']:.3f} / {said['latency_ms']['p95']:.3f} ms"
        f"  (p50 of the runs: {min(p50s):.3f} to {max(p50s):.3f})",
        "throughput": f"{said['throughput_per_s']:.0f} samples/s",
        "peak memory": f"{said['peak_rss_mb']:.0f} MB",
        "runs as": f"{ran['precision']} on {ran['device']}, {threads}",
        "here": f"{host['cpu'] or host['machine']}, {host['cpus']} CPUs",
    }
