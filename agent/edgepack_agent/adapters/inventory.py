"""What this device is, read from /proc and what is installed. Imports no runtime."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgepack.messages import Inventory
from edgepack_agent.adapters.installed import Installed

__all__ = ["read_inventory", "rss_mb"]

_PROC = Path("/proc")


def read_inventory(data_dir: Path, installed: Installed, allowed: Sequence[str] = ()) -> Inventory:
    """Return what this device is.

    Args:
        data_dir: Where models are kept; its free space counts.
        installed: What there is.
        allowed: Runtimes to use, best first; empty: all that are installed.
    """
    runtimes = installed.runtimes
    order = [name for name in allowed if name in runtimes] if allowed else list(runtimes)
    system = os.uname()
    return Inventory(
        agent=installed.agent,
        arch=system.machine,
        os=f"{system.sysname} {system.release}",
        cpu_features=_cpu_features(),
        ram_mb=_ram_mb(),
        disk_free_mb=shutil.disk_usage(data_dir).free // 2**20,
        runtimes={name: runtimes[name] for name in order},
    )


def rss_mb() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int((_PROC / "self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_features() -> tuple[str, ...]:
    """Return the CPU's flags, called `flags` on x86 and `Features` on ARM, sorted."""
    with contextlib.suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"flags", "Features"}:
                return tuple(sorted(value.split()))
    return ()


def _ram_mb() -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) // 1024
    return 0
