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
    from edgepack_targets.fresh import measure_bundle
    from edgepack_targets.measure import benchmark_rows

    with tempfile.TemporaryDirectory() as name, open_bundle(bundle) as opened:
        home = Path(name)
        opened.extract(home)
        document = measure_bundle(
            home, opened.manifest, opened.digest,
            runs=runs, seconds=seconds, threads=threads, say=_say,
        )  # fmt: skip
    if as_json:
        print_json(document)
        return
    for fact, value in benchmark_rows(document).items():
        click.echo(f"{fact:<18} {value}")


def _say(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)
