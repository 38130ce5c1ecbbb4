"""Where runtimes keep what they compiled of a model: a directory for each. Loads none.

    compiled/SHA256    of the agent's user alone; the runner of that model may write to it

What is in them is never fetched, installed or carried along: a runner makes it here, or it is
not there. Losing it costs the time of a compilation.
"""

import contextlib
import shutil
from pathlib import Path

from edgepack_agent.core.state import Slot

__all__ = ["Compiled"]


class Compiled:
    """The directories below DIRECTORY."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def place(self, slot: Slot) -> Path | None:
        """Return the directory of the model in SLOT; None: the disk has none for it."""
        place = self._directory / slot.model.sha256
        try:
            for path in (self._directory, place):
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            return None
        return place

    def collect(self, *slots: Slot | None) -> None:
        """Remove what belongs to no model of SLOTS."""
        kept = {slot.model.sha256 for slot in slots if slot}
        with contextlib.suppress(OSError):
            for place in self._directory.iterdir():
                if place.name not in kept:
                    shutil.rmtree(place, ignore_errors=True)
