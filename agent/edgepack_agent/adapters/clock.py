"""What time it is: boot, seconds since then (suspend included), wall clock. Judges none of them."""

import time
from functools import cache
from pathlib import Path

from edgepack_agent.core.state import Stamp

__all__ = ["read_stamp"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def read_stamp() -> Stamp:
    """Return this moment."""
    return Stamp(_boot(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        # Unknown: then no two starts of the agent are the same boot, which costs accuracy only.
        return f"unknown-{time.time_ns()}"
