"""What a runner is started with, beside its slot and its sockets. Opens nothing.

The supervisor writes it on the command line, where every user can read it: no secret, so no
address of a camera, is in it.
"""

from pathlib import Path

import msgspec

from edgepack.errors import UsageError
from edgepack_agent.core.heat import HeatRule
from edgepack_targets.interface import Device, Hint, Placement

__all__ = ["Setup", "read_setup", "write_setup"]


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one runner; paths are absolute."""

    threads: int | None = None
    """Of the runtime; None leaves it to the runtime."""
    device: Device = "CPU"
    hint: Hint = "latency"
    heat: HeatRule | None = None
    """When cameras are slowed down; None: never."""
    sources: tuple[str, ...] = ()
    """Folders, clips and devices that pictures come from, there already or not."""
    read: tuple[str, ...] = ()
    """Other files that may be read: the exam."""
    compiled: str | None = None
    """Directory of this model for what the runtime compiles of it; None: nothing is kept."""
    results: str | None = None
    """Directory for the results of sources; None: they are not written."""
    album: str | None = None
    """Directory for snapshots; None: none are kept."""
    scratch: str | None = None
    """Directory for temporary files; None: there are none."""

    def place(self) -> Placement:
        """Return where the model is to run."""
        return Placement(self.device, self.hint, Path(self.compiled) if self.compiled else None)


def read_setup(text: str) -> Setup:
    """Return the setup in TEXT.

    Raises:
        UsageError: it is none.
    """
    try:
        return msgspec.json.decode(text, type=Setup)
    except msgspec.MsgspecError as error:
        raise UsageError("the runner was started wrongly", why=str(error)) from error


def write_setup(setup: Setup) -> str:
    """Return SETUP as text."""
    return msgspec.json.encode(setup).decode()
