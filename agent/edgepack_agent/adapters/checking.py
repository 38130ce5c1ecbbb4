"""`edgepack-agent doctor` as a process of its own: a check may hang, and takes memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgepack.errors import EdgepackError

__all__ = ["check_up"]

DOCTOR_S = 120.0
"""Seconds for all checks; each of them has limits of its own, too."""


def check_up(config: Path | None) -> dict[str, Any]:
    """Return what `edgepack-agent doctor --json` says by the configuration in CONFIG.

    Raises:
        EdgepackError: it came to no end, or to none that can be read (reason `check_failed`).
    """
    chosen = ["--config", str(config)] if config else []
    line = [sys.executable, "-P", "-c", "from edgepack_agent.cli import main; main()"]
    try:
        done = subprocess.run(
            [*line, *chosen, "doctor", "--json"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=DOCTOR_S, check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EdgepackError(
            "the check came to no end", why=str(error)[:500], reason="check_failed"
        ) from error
    return found
