"""`edgepack benchmark`: how fast and how hungry a bundle is here. Measures in fresh processes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgepack.cli import FiniteRange, print_json
from edgepack_packager.cli.opened import THREADS, stoppable, unpacked

if TYPE_CHECKING:
    from edgepack_targets.measure import Benchmark

__all__ = ["benchmark"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@THREADS
@click.option(
    "--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Fresh processes."
)
@click.option(
    "--seconds", type=FiniteRange(0, min_open=True), default=1.0, show_default=True,
    help="How long each of them infers.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def benchmark(bundle: Path, threads: int | None, runs: int, seconds: float, as_json: bool) -> None:
    """Measure load time, first inference, latency, throughput and peak memory of BUNDLE.

    In fresh processes, with the bundle's own golden inputs, one sample at a time; what is
    printed are the medians.

    \b
    Example:
        edgepack benchmark digits-1.0.0-onnx-int8.edgepack --threads 2
    """
    from edgepack_targets.fresh import measure_runs
    from edgepack_targets.measure import benchmark_document
    from edgepack_targets.pipeline.npz import read_npz

    with stoppable(), unpacked(bundle) as (opened, home):
        golden = opened.manifest.golden
        # The process trusts what it is given, and a bundle need not come from a friend.
        read_npz(
            home / golden.inputs, opened.manifest.inputs,
            what="golden", max_samples=golden.samples,
        )  # fmt: skip
        done, effective = measure_runs(
            home, home / golden.inputs, runs=runs, seconds=seconds, threads=threads, say=_say
        )
        document = benchmark_document(opened.manifest, opened.digest, done, effective, threads)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)


def _print(said: "Benchmark") -> None:
    ran, host = said["effective"], said["host"]
    threads = f"{ran['threads']} threads" if ran["threads"] else "the runtime's threads"
    p50s = [run["latency_ms"]["p50"] for run in said["runs"]]
    rows = {
        "load": f"{said['load_ms']:.1f} ms",
        "first inference": f"{said['first_ms']:.2f} ms",
        "latency p50 / p95": f"{said['latency_ms']['p50']:.3f} / {said['latency_ms']['p95']:.3f} ms"
        f"  (p50 of the runs: {min(p50s):.3f} to {max(p50s):.3f})",
        "throughput": f"{said['throughput_per_s']:.0f} samples/s",
        "peak memory": f"{said['peak_rss_mb']:.0f} MB",
        "runs as": f"{ran['precision']} on {ran['device']}, {threads}",
        "here": f"{host['cpu'] or host['machine']}, {host['cpus']} CPUs",
    }
    for name, value in rows.items():
        click.echo(f"{name:<18} {value}")
