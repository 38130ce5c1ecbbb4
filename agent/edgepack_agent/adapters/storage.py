"""Looks at the device's disk and databases without changing them, whether an agent runs or not.

A database is never opened where it is: SQLite would leave files beside it, and those of root lock
the service out. A copy is looked at instead.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["copied", "sync_works"]

_PARTS = ("", "-wal")
_TRY = b"x" * 4096


def sync_works(directory: Path) -> None:
    """Write and fsync a file in DIRECTORY that never gets a name.

    Raises:
        OSError: it cannot be done: read-only, full, or failing.
    """
    try:
        handle = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise OSError(error.errno, "this file system has no unnamed files") from error
    try:
        os.write(handle, _TRY)
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def copied(database: Path) -> Iterator[Path]:
    """Yield a copy of DATABASE with what is in its log.

    Raises:
        OSError: it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="edgepack-doctor-") as place:
        target = Path(place) / database.name
        for part in _PARTS:
            source = database.with_name(database.name + part)
            if not part or source.exists():
                shutil.copyfile(source, target.with_name(target.name + part))
        yield target
