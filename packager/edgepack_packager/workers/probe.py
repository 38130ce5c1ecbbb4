"""Answer from inside a worker: what is installed, does it run. Converts nothing."""

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["installed_versions", "versions"]


def versions(args: dict[str, Any], _out: Path, _say: Callable[[str], None]) -> dict[str, Any]:
    """Return the installed versions of `args["names"]`."""
    return {"versions": installed_versions(args["names"])}


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution in NAMES that is installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
