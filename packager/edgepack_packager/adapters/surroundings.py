"""Looks at this machine for `edgepack doctor`. Judges nothing, installs nothing."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from edgepack.errors import UsageError
from edgepack.keys import find_key
from edgepack_packager.adapters import toolchains
from edgepack_packager.core.doctor import Facts
from edgepack_targets import registry
from edgepack_targets.machine import describe_machine

__all__ = ["look_around"]


def look_around() -> Facts:
    """Return what is installed here, and how much room there is."""
    targets = {name: registry.find(name) for name in registry.names()}
    key, key_fix = _key()
    cache = toolchains.toolchains_dir()
    installed = registry.installed()
    return Facts(
        version=version("edgepack"),
        python=platform.python_version(),
        machine=describe_machine(),
        capabilities={name: target.capability() for name, target in targets.items()},
        runtimes={name: installed.get(name) for name in targets},
        extras={name: target.extra for name, target in targets.items()},
        toolchains={name: _python(name) for name in toolchains.TOOLCHAINS},
        purposes={name: one.purpose for name, one in toolchains.TOOLCHAINS.items()},
        key=key,
        key_fix=key_fix,
        cache=str(cache),
        free_mb=_free_mb(cache),
    )


def _key() -> tuple[str | None, str]:
    try:
        return str(find_key(None)), ""
    except UsageError as error:
        return None, error.fix


def _python(name: str) -> str | None:
    try:
        where = toolchains.interpreter(toolchains.TOOLCHAINS[name])
    except UsageError:
        # The environment names a Python that is not there: as good as not installed.
        return None
    return str(where.python) if where else None


def _free_mb(directory: Path) -> int:
    """Return the room in DIRECTORY, or in the nearest one above it that is there."""
    there = next(p for p in (directory, *directory.parents) if p.is_dir())
    return shutil.disk_usage(there).free // 10**6
