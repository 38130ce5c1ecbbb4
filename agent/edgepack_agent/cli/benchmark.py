"""`edgepack-agent benchmark`: how fast and how hungry a bundle is on this very device."""

import sys
import tempfile
from pathlib import Path

import click

from edgepack.bundle import open_bundle
from edgepack.cli import FiniteRange, print_json

__all__ = ["benchmark"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1, 256), help="Of the runtime [default: its own].")
@click.option(
    "--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Fresh processes."
)
@click.option(
    "--seconds", type=FiniteRange(0, min_open=True), default=1.0, show_default=True,
    help="How long each of them infers.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def benchmark(bundle: Path, threads: int | None, runs: int, seconds: float, as_json: bool) -> None:
    """Measure load time, first inference, latency, throughput and peak memory of BUNDLE here.

    With the code and in the document of `edgepack benchmark`, so that `edgepack build
    --profile` on a host judges by what this device has measured. Installs nothing.

    \b
    Example:
        edgepack-agent benchmark digits-1.0.0-onnx-int8.edgepack --json > profile.json
    """
    from edgepack_targets.fresh import measure_runs
    from edgepack_targets.measure import benchmark_document, benchmark_rows
    from edgepack_targets.pipeline.npz import read_npz

    with tempfile.TemporaryDirectory() as name, open_bundle(bundle) as opened:
        home, manifest = Path(name), opened.manifest
        opened.extract(home)
        golden = home / manifest.golden.inputs
        # The process trusts what it is given, and a bundle need not come from a friend.
        samples = manifest.golden.samples
        read_npz(golden, manifest.inputs, what="golden", max_samples=samples)
        done, effective = measure_runs(
            home, golden, runs=runs, seconds=seconds, threads=threads, say=_say
        )
        document = benchmark_document(manifest, opened.digest, done, effective, threads)
    if as_json:
        print_json(document)
        return
    for fact, value in benchmark_rows(document).items():
        click.echo(f"{fact:<18} {value}")


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)
