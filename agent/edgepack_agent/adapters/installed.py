"""What is installed here: the agent itself and the runtimes. Asked of a process that ends.

Looking through what is installed takes a megabyte that a waiting device should not keep, and a
plugin that cannot be imported must not take the agent along.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec

__all__ = ["Installed", "Shelf"]

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""A small device with a cold disk needs seconds to import the plugins."""


class Installed(msgspec.Struct, frozen=True):
    """What one look has found."""

    agent: str = ""
    """Version of edgepack."""
    runtimes: dict[str, str] = {}
    """Target to version of its runtime."""


class Shelf:
    """Looks again when something has been installed or removed."""

    def __init__(self) -> None:
        self._found = Installed()
        self._stamp: tuple[int, ...] = ()

    def read(self) -> Installed:
        """Return what is installed; what was there at the last look if it cannot be told."""
        stamp = tuple(_changed(Path(place)) for place in sys.path)
        if stamp != self._stamp:
            self._look(stamp)
        return self._found

    def _look(self, stamp: tuple[int, ...]) -> None:
        command = [sys.executable, "-P", "-m", __name__]
        try:
            said = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=True)
            self._found = msgspec.json.decode(said.stdout, type=Installed)
        except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
            log.warning("cannot tell which runtimes are installed: %s", error)
            return
        self._stamp = stamp


def _changed(place: Path) -> int:
    """Return when something was last put into PLACE or taken out of it; 0: it is not there."""
    try:
        return place.stat().st_mtime_ns
    except OSError:
        return 0


def _tell() -> None:
    from importlib.metadata import version

    from edgepack_targets import registry

    found = Installed(version("edgepack"), registry.installed())
    os.write(sys.stdout.fileno(), msgspec.json.encode(found))


if __name__ == "__main__":
    _tell()
