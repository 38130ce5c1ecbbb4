"""What feeds this device, read from /sys/class/power_supply. Decides nothing.

A machine without batteries runs on mains. Batteries of peripherals (`scope` Device) do not count.
"""

import contextlib
from pathlib import Path

from edgepack_agent.core.deferral import Power

__all__ = ["read_power"]

_SUPPLIES = Path("/sys/class/power_supply")


def read_power(supplies: Path = _SUPPLIES) -> Power:
    """Return what the kernel says below SUPPLIES; what cannot be read counts as mains."""
    levels: list[float] = []
    mains = False
    for supply in sorted(supplies.glob("*")):
        if _read(supply / "scope") == "Device":
            continue
        kind = _read(supply / "type")
        if kind == "Battery" and (level := _level(supply)) is not None:
            levels.append(level)
            mains = mains or _read(supply / "status") in {"Charging", "Full", "Not charging"}
        elif kind in {"Mains", "USB", "Wireless"}:
            mains = mains or _read(supply / "online") == "1"
    if not levels:
        return Power(on_battery=False)
    return Power(on_battery=not mains, percent=max(levels))


def _level(supply: Path) -> float | None:
    with contextlib.suppress(ValueError):
        return float(_read(supply / "capacity"))
    return None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return ""
