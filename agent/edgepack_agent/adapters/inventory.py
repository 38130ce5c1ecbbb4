"""What this device is, read from /proc and what is installed. Imports no runtime."""

import contextlib
import hashlib
import hmac
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgepack.messages import Inventory
from edgepack_agent.adapters.installed import Installed

__all__ = ["host_id", "read_inventory", "rss_mb"]

_PROC = Path("/proc")
MACHINE_ID = Path("/etc/machine-id")
"""Of this installation of the system; see machine-id(5), which asks not to tell it to a network."""


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
        host=host_id(),
    )


def host_id(machine_id: Path = MACHINE_ID) -> str:
    """Return what all agents of this box are known to share it by; empty: it has no identity.

    A keyed hash of the machine id, from which nobody learns it or finds this box elsewhere, as
    machine-id(5) asks programs to do: HMAC-SHA256 keyed with it, of a name of our own.
    """
    try:
        key = machine_id.read_bytes().strip()
    except OSError:
        return ""
    # While an image boots for the first time it holds a word instead.
    if len(key) != 32:
        return ""
    return hmac.new(key, b"edgepack host", hashlib.sha256).hexdigest()[:32]


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
