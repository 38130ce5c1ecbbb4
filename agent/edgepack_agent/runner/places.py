"""Which places a runner needs, and whether one of them has been exchanged since. Opens none.

A rule of the kernel's holds for what was at a path, not for the path: a folder that is made
anew, a camera that is plugged in again, is another one, and closed to a process that was shut in
before. `Places` therefore go with `marks`, and who finds one `moved` has to start again.
"""

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgepack_agent.runner.landlock import Places
from edgepack_agent.runner.setup import Setup

__all__ = ["Marks", "marks", "moved", "places"]

Marks = dict[str, tuple[int, int] | None]
"""Path to device and inode; None: nothing was there."""
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sys", "/proc/self", "/proc/sys")
_PROC = ("cpuinfo", "meminfo", "stat", "loadavg", "version", "filesystems")
"""What runtimes read of the machine; not what other processes are."""
_ETC = (
    "ssl", "pki", "ca-certificates", "ca-certificates.conf", "gnutls", "crypto-policies",
    "localtime", "timezone", "resolv.conf", "hosts", "host.conf", "nsswitch.conf", "gai.conf",
    "services", "protocols", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "os-release",
    "OpenCL",
)  # fmt: skip
"""Certificates, names, the loader; no setting of a program, and so no password."""
_DEVICES = ("null", "zero", "random", "urandom", "dri", "accel")


def places(slot: Path, setup: Setup) -> Places:
    """Return what a runner of SLOT with SETUP may open."""
    sources = [Path(path) for path in setup.sources]
    devices = [path for path in sources if _is_device(path)]
    written = (setup.results, setup.album, setup.scratch, setup.compiled)
    own = [Path(path) for path in written if path]
    read = [slot, *map(Path, setup.read), *sources, *_interpreter(), *map(Path, _SYSTEM)]
    read += [Path("/proc", name) for name in _PROC] + [Path("/etc", name) for name in _ETC]
    return Places(
        tuple(path for path in read if path not in devices),
        tuple(own),
        (*devices, *(Path("/dev", name) for name in _DEVICES)),
    )


def _interpreter() -> set[Path]:
    """Return where Python, packages and the libraries they name are."""
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    found = (sys.prefix, sys.base_prefix, *sys.path, *libraries)
    return {Path(path) for path in found if Path(path).is_absolute() and path != "/"}


def _is_device(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISCHR(path.stat().st_mode)
    return False


def marks(paths: Iterable[str]) -> Marks:
    """Return what is at PATHS now."""
    return {path: _mark(path) for path in paths}


def moved(before: Mapping[str, tuple[int, int] | None]) -> list[str]:
    """Return the paths where there is something now that was not there BEFORE."""
    return [path for path, mark in before.items() if _mark(path) not in (None, mark)]


def _mark(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        found = Path(path).stat()
        return found.st_dev, found.st_ino
    return None
