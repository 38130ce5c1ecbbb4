"""What the CPU at hand can do, as the kernel says. Linux only; elsewhere nothing is known."""

from pathlib import Path

__all__ = ["features"]

CPUINFO = Path("/proc/cpuinfo")


def features() -> frozenset[str]:
    """Return the CPU's features by the kernel's names: `flags` on x86, `Features` on ARM."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line.partition(":") for line in lines)
    return frozenset(
        word
        for name, _, value in named
        if name.strip() in {"flags", "Features"}
        for word in value.split()
    )
