"""A measurement as a process of its own, which can be stopped at any moment. Judges no number."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError

__all__ = ["SECONDS", "measure"]

SECONDS = 1.0
"""How long each of the fresh processes infers."""
LOOK_S = 0.25


def measure(
    slot: Path, home: Path, threads: int | None, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Return the benchmark document of the model in SLOT.

    Args:
        slot: An extracted bundle.
        home: Gets temporary files.
        threads: Of the runtime; None: its own choice.
        stop: Looked at now and then.

    Raises:
        EdgepackError: STOP said so (reason `cancelled`), or the model could not be measured.
    """
    with tempfile.TemporaryDirectory(prefix="measure-", dir=home) as scratch:
        words = [str(slot), scratch, str(SECONDS), str(threads or 0), str(os.getpid())]
        line = [sys.executable, "-P", "-m", "edgepack_agent.runner.benchmarking", *words]
        with (Path(scratch) / "said").open("w+b") as said:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL,
                env=dict(os.environ) | {"TMPDIR": scratch},
            )  # fmt: skip
            stopped = _look_after(process, stop)
            said.seek(0)
            text = said.read()
    if stopped:
        raise EdgepackError("the measurement was stopped", reason="cancelled")
    return _document(text, process.returncode)


def _look_after(process: "subprocess.Popen[bytes]", stop: Callable[[], bool]) -> bool:
    """Wait for PROCESS; return whether it had to be killed because STOP said so."""
    while process.poll() is None:
        if stop():
            process.kill()
            process.wait()
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
    return False


def _document(text: bytes, code: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise EdgepackError(
            "the measurement came to no end", why=f"it ended with {code}", reason="measure_failed"
        ) from error
    if "error" in found:
        told = found["error"]
        raise EdgepackError(told["message"], why=told.get("why", ""), reason=told["reason"])
    return found
