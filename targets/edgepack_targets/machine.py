"""What machine this is: what a measurement is worth nothing without. Measures nothing."""

import contextlib
import os
import platform
from pathlib import Path
from typing import TypedDict

__all__ = ["Machine", "describe_machine"]

PROC = Path("/proc")
TELLING = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8",
    "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""What decides which kernels a runtime takes for int8 and bf16."""


class Machine(TypedDict):
    """The machine that something was measured on."""

    machine: str
    """`x86_64`, `aarch64`, ..."""
    system: str
    cpu: str
    cpus: int
    memory_mb: int
    cpu_features: list[str]
    """Of the CPU's features, those that decide how int8 and bf16 are computed."""


def describe_machine() -> Machine:
    """Return what the system says about this machine; what it does not say is empty or 0."""
    said = _cpuinfo()
    flags = set(said.get("flags", said.get("Features", "")).split())
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": said.get("model name", said.get("Model", "")),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": _memory_mb(),
        "cpu_features": [name for name in TELLING if name in flags],
    }


def _cpuinfo() -> dict[str, str]:
    """Return the first value of every line of /proc/cpuinfo."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (PROC / "cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found


def _memory_mb() -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024 // 10**6
    return 0
