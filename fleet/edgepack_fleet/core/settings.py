"""What each device is to be set to, of what is set on its group and on itself. Pure."""

from collections.abc import Mapping
from typing import Any

__all__ = ["changed", "next_version", "wanted"]

Values = Mapping[str, Any]


def wanted(group: Values | None, device: Values | None) -> dict[str, Any]:
    """Return the values for a device: its own go before those of its group."""
    return {**(group or {}), **(device or {})}


def changed(values: Values, more: Values, less: tuple[str, ...]) -> dict[str, Any]:
    """Return VALUES with MORE, and without the keys LESS."""
    return {key: value for key, value in {**values, **more}.items() if key not in less}


def next_version(last: int, now: float) -> int:
    """Return a version above LAST, also after LAST was lost with a backup."""
    return max(last + 1, int(now))
