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
    from edgepack_targets.fresh import measure_bundle

    with stoppable(), unpacked(bundle) as (opened, home):
        document = measure_bundle(
            home, opened.manifest, opened.digest,
            runs=runs, seconds=seconds, threads=threads, say=_say,
        )  # fmt: skip
    if as_json:
        print_json(document)
    else:
        _print(document)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)


def _print(said: "Benchmark") -> None:
    from edgepack_targets.measure import benchmark_rows

    for name, value in benchmark_rows(said).items():
        click.echo(f"{name:<18} {value}")
