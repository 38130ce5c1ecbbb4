"""Whether the processor was slowed down, by heat or for want of power, as Linux tells anybody.

Looked at once a beat. Three sources, whichever a machine has:

- x86 counts how often a core or package was slowed (`thermal_throttle/*_throttle_count`);
- the firmware of a Raspberry Pi says what it does now (`get_throttled`, bits 0 to 3), and its
  driver raises an alarm for too little voltage;
- everywhere the thermal framework says how far a cooling device is on. Fans are such devices,
  too, and say nothing of speed: only those that slow the processor count.

Sources: kernel.org/doc/Documentation/ABI/testing/sysfs-devices-system-cpu and
sysfs-class-thermal; raspberrypi.com/documentation/computers/os.html#get_throttled.
"""

import contextlib
from pathlib import Path

__all__ = ["Throttle"]

_COUNTS = "devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
_FIRMWARE = "devices/platform/soc/soc:firmware/get_throttled"
_NOW = 0b1111
"""Too little voltage, frequency capped, throttled, soft limit of temperature; higher bits tell what
has ever been since the start."""
_ALARM = "class/hwmon/hwmon*/in0_lcrit_alarm"
_COOLING = "class/thermal/cooling_device*/cur_state"
_SLOWS = ("cpufreq", "thermal-cpufreq", "idle-", "thermal-idle", "Processor", "intel_powerclamp")
"""Beginnings of the types of cooling devices that slow the processor."""


class Throttle:
    """The processor of this machine.

    Args:
        system: Where sysfs is.
    """

    def __init__(self, system: Path = Path("/sys")) -> None:
        self._firmware = system / _FIRMWARE
        self._counts = list(system.glob(_COUNTS))
        self._alarms = [
            path for path in system.glob(_ALARM) if _text(path.with_name("name")) == "rpi_volt"
        ]
        self._cooling = [
            path
            for path in system.glob(_COOLING)
            if _text(path.with_name("type")).startswith(_SLOWS)
        ]
        self._before = self._counted()

    def seen(self) -> bool | None:
        """Return whether the processor was slowed since the last call; None: nothing says so."""
        before, self._before = self._before, self._counted()
        found = [
            *(count > before.get(path, count) for path, count in self._before.items()),
            *(
                state > 0
                for state in map(_number, self._alarms + self._cooling)
                if state is not None
            ),
        ]
        firmware = _number(self._firmware, 16)
        if firmware is not None:
            found.append(firmware & _NOW != 0)
        return any(found) if found else None

    def _counted(self) -> dict[Path, int]:
        counts = {path: _number(path) for path in self._counts}
        return {path: count for path, count in counts.items() if count is not None}


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text().strip()
    return ""


def _number(path: Path, base: int = 10) -> int | None:
    with contextlib.suppress(ValueError):
        return int(_text(path), base)
    return None
