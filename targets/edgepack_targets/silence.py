"""Keeps runtimes and converters from talking to the network and the terminal. Hides no error."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

__all__ = ["no_output", "no_telemetry"]


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Keep runtimes from reporting to their makers while they are imported and used.

    Both report by default, model names and hashes included, and leave identifiers in the user's
    home: onnxruntime from 1.29 on as soon as it is imported, OpenVINO at its import and at every
    conversion. onnxruntime's own switch stays on, for what the process imports or starts later;
    OpenVINO has none without a file but to believe that it is in CI.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
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
