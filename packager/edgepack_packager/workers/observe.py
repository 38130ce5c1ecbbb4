"""Run an artefact in the device's runtime: what it answers, how fast, how much memory.

The process is fresh, so that loading, the first inference and the peak of memory are honest.
Judges nothing.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.manifest import Manifest, read_manifest
from edgepack_packager.workers.arrays import read_arrays, write_npz
from edgepack_targets import registry
from edgepack_targets.measure import peak_rss_mb

__all__ = ["observe"]

WARM_UP, RUNS, SECONDS = 5, 200, 1.0
Sample = dict[str, NDArray[Any]]


def observe(args: dict[str, Any], out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Answer every sample of `args["samples"]` into OUT/outputs.npz and measure.

    Returns:
        `effective` settings and, in milliseconds, `load`, `first`, `p50`, `p95`; `throughput` in
        samples per second; `peak_rss_mb` (10^6 bytes) of the whole process.
    """
    manifest = read_manifest(Path(args["manifest"]).read_bytes())
    target = registry.find(manifest.target.runtime)
    samples = list(_samples(manifest, read_arrays(args["samples"])))
    say(f"running {target.name} {manifest.target.precision}")
    begin = time.perf_counter()
    session = target.load(Path(args["model_dir"]), manifest, threads=args.get("threads", 1))
    loaded = time.perf_counter()
    rows = [session.run(samples[0])]
    first = time.perf_counter()
    rows += [session.run(sample) for sample in samples[1:]]
    names = [spec.name for spec in manifest.outputs]
    answers = {name: np.concatenate([row[name] for row in rows]) for name in names}
    write_npz(out / "outputs.npz", answers)
    measured = _measure(lambda i: session.run(samples[i % len(samples)]))
    effective = asdict(session.effective)
    session.close()
    times = {"load": (loaded - begin) * 1e3, "first": (first - loaded) * 1e3}
    return {"effective": effective, "peak_rss_mb": peak_rss_mb()} | times | measured


def _samples(manifest: Manifest, arrays: dict[str, NDArray[Any]]) -> Iterator[Sample]:
    """Yield one sample at a time, each with a batch axis of 1."""
    count = len(arrays[manifest.inputs[0].name])
    for index in range(count):
        yield {spec.name: arrays[spec.name][index : index + 1] for spec in manifest.inputs}


def _measure(run: Callable[[int], object]) -> dict[str, float]:
    for index in range(WARM_UP):
        run(index)
    spent: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(spent) < RUNS and (time.perf_counter() < end or len(spent) < WARM_UP):
        begin = time.perf_counter()
        run(len(spent))
        spent.append((time.perf_counter() - begin) * 1e3)
    p50, p95 = (float(v) for v in np.percentile(spent, [50, 95]))
    return {"p50": p50, "p95": p95, "throughput": 1e3 * len(spent) / sum(spent)}
