"""Progress and the receipt of a build, on standard error. Measures nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from edgepack_packager.core.report import BuildResult, Built

__all__ = ["print_receipt", "progress"]

Report = Callable[[str, int, int], None]
Say = Callable[[str], None]


@contextmanager
def progress() -> Iterator[tuple[Report, Say]]:
    """Yield (report, warn): a progress bar on a terminal, plain warnings everywhere.

    `report` takes what is being done, how many steps are done and how many there are.
    """

    def warn(text: str) -> None:
        click.secho(f"warning: {text}", fg="yellow", err=True)

    if not sys.stderr.isatty():
        yield (lambda *_: None), warn
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def report(text: str, done: int, total: int) -> None:
            bar.update(task, description=text or None, completed=done, total=total or None)

        yield report, warn


def print_receipt(result: BuildResult) -> None:
    """Print one line per variant: size, drop, parity, latency against fp32."""
    from rich.console import Console
    from rich.table import Table

    table = Table("variant", "size", "metric", "parity", "p50", "bundle", box=None, pad_edge=False)
    for built in result.built:
        style = "red" if built.warnings else None
        table.add_row(*_row(built), style=style)
    for failed in result.failed:
        table.add_row(str(failed.variant), "-", "-", "-", "-", failed.error.what, style="red")
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 140, highlight=False)
    console.print(table)
    for built in result.built:
        for note in built.warnings:
            console.print(f"{built.variant}: {note}", style="red")


def _row(built: Built) -> tuple[str, ...]:
    this, fp32 = built.measured, built.fp32
    score = built.score
    metric = f"{score.reference:.4f} -> {score.this:.4f}" if score else "not measured"
    return (
        str(built.variant),
        f"{this.model_bytes / 1e3:.1f} kB ({this.model_bytes / fp32.model_bytes:.2f} x)",
        metric,
        f"{built.parity.max_abs:.2g} / {built.parity.cosine:.6f}",
        f"{this.p50:.3f} ms ({this.p50 / fp32.p50:.2f} x)",
        built.path,
    )
