"""What the fleet has set, on disk: whole or as it was, whatever is cut. Judges nothing."""

from pathlib import Path
from typing import Any

import msgspec

from edgepack.durable import write_file

__all__ = ["NAME", "Kept", "keep", "kept"]

NAME = "settings.json"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The last word of the fleet on settings, and what holds."""

    judged: int = 0
    """Version that was judged last: applied or rejected."""
    applied: int = 0
    """Version of `values`."""
    values: dict[str, Any] = msgspec.field(default_factory=dict)
    """Value by dotted key."""


def kept(data: Path) -> Kept:
    """Return what is kept in the directory DATA; what cannot be read is none."""
    try:
        return msgspec.json.decode((data / NAME).read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Kept()


def keep(data: Path, found: Kept) -> None:
    """Keep FOUND in the directory DATA; durable when it returns.

    Raises:
        OSError: it cannot be written; what was kept before still is.
    """
    write_file(data / NAME, msgspec.json.encode(found), 0o600)
