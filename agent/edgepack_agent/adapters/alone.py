"""The lock on a data directory: one process at a time is this device."""

import fcntl
import os
from pathlib import Path

from edgepack.errors import UsageError

__all__ = ["take_data"]


def take_data(data: Path) -> int:
    """Take the data directory DATA for this process; two agents would undo each other's work.

    Returns:
        A descriptor: whoever has it open holds the lock.

    Raises:
        UsageError: another process has it, or it cannot be written.
    """
    try:
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UsageError(
            "an agent is running here already", why=str(data), reason="already_running"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot use {data}", why=str(error), fix="check data_dir", reason="unwritable"
        ) from error
    return lock
