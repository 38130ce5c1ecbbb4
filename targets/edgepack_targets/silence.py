"""Keeps runtimes and converters from talking to the network and the terminal. Hides no error."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["no_output", "no_telemetry"]


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Keep OpenVINO from sending usage statistics while it is imported and used.

    The first import and every conversion are reported to an analytics service, and files are
    left in the user's home, unless it believes to be in CI: its only switch that needs no file.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


@contextmanager
def no_output() -> Iterator[None]:
    """Drop what a library prints: stdout is for results, and progress is ours to show."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
