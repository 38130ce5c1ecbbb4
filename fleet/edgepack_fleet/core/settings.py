"""What each device is to be set to, of what is set on its group and on itself. Pure."""

from collections.abc import Mapping
from typing import Any

__all__ = ["changed", "next_version", "wanted"]

Values = Mapping[str, Any]


def wanted(*documents: Values) -> dict[str, Any]:
    """Return the values of DOCUMENTS, of a device's groups and its own; later ones go before."""
    return {key: value for document in documents for key, value in document.items()}


def changed(values: Values, more: Values, less: tuple[str, ...]) -> dict[str, Any]:
    """Return VALUES with MORE, and without the keys LESS."""
    return {key: value for key, value in {**values, **more}.items() if key not in less}


def next_version(last: int, now: float) -> int:
    """Return a version above LAST, also after LAST was lost with a backup."""
    return max(last + 1, int(now))
