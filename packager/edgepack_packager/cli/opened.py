"""What commands that run a bundle share: it is opened, taken apart and cleaned up. Runs nothing."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from edgepack.bundle import Bundle, open_bundle

__all__ = ["THREADS", "stoppable", "unpacked"]

THREADS = click.option("--threads", type=click.IntRange(1), help="Default: the runtime's choice.")


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Bundle, Path]]:
    """Yield the bundle PATH and a temporary directory with its files; warn if it is not signed."""
    with open_bundle(path) as bundle, tempfile.TemporaryDirectory(prefix="edgepack-run-") as home:
        if not bundle.signed:
            click.secho(f"warning: {path.name} is not signed", fg="yellow", err=True)
        bundle.extract(Path(home))
        yield bundle, Path(home)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end a command like Ctrl-C, so that no process and no directory stays behind."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
