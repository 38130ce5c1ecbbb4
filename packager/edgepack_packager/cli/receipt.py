"""Progress and the receipt of a build, on standard error. Measures nothing."""

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from edgepack_packager.core.paired import paired_sentence
from edgepack_packager.core.report import BuildResult, Built, best_of, budget_notes

__all__ = ["print_receipt", "progress"]

SLOWER = 1.05
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


def print_receipt(result: BuildResult, *, max_drop: float | None = None) -> None:
    """Print a row per variant, what each costs in samples, and what got worse, in red.

    Args:
        result: Of the build.
        max_drop: What was allowed, to mark the best variant.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    best = best_of(result, max_drop, platform.machine())
    heads = ("", "variant", "model", "metric", "cosine", "p50", "memory", "bundle")
    table = Table(*heads, box=None, pad_edge=False)
    for built in result.built:
        table.add_row(*(Text(*cell) for cell in _row(built, best=built is best)))
    for failed in result.failed:
        told = Text(failed.error.what, style="red")
        table.add_row(Text("x", "red"), Text(str(failed.variant), "red"), *["-"] * 5, told)
    # What is no terminal is as wide as it must be: a path is never cut.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 200, highlight=False)
    console.print(table)
    for note, style in _notes(result, best):
        console.print(Text(note, style=style))


def _row(built: Built, *, best: bool) -> tuple[tuple[str, str], ...]:
    """Return the cells of BUILT with their style."""
    this, fp32, score = built.measured, built.fp32, built.score
    size, speed = this.model_bytes / fp32.model_bytes, this.p50 / fp32.p50
    metric = f"{score.reference:.4f} -> {score.this:.4f}" if score else "not measured"
    return (
        ("\u2605" if best else "", "green"),
        (str(built.variant), "bold" if best else ""),
        (f"{this.model_bytes / 1e3:,.1f} kB ({size:.2f} x)", "red" if size > 1 else ""),
        (metric, ""),
        (f"{built.parity.cosine:.6f}", ""),
        (f"{this.p50:.4g} ms ({speed:.2f} x)", "red" if speed > SLOWER else ""),
        (f"{this.peak_rss_mb:.0f} MB", ""),
        (built.path, ""),
    )


def _notes(result: BuildResult, best: Built | None) -> Iterator[tuple[str, str]]:
    """Yield the lines under the table with their style."""
    for built in result.built:
        if built.paired and built.variant.precision != "fp32":
            yield paired_sentence(built.paired, str(built.variant)), ""
        for note in built.warnings:
            yield f"{built.variant}: {note}", "red"
    for note in budget_notes(result):
        yield f"budget of {note}", ""
    if best and len(result.built) > 1:
        yield f"\u2605 {best.variant}: the fastest that keeps the accuracy", "green"
