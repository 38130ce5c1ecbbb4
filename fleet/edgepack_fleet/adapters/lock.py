"""Locks between processes, by files. They are let go when a process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.errors import UsageError

__all__ = ["alone", "only_one"]


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait for the lock of DIRECTORY and hold it."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Be the only process that serves DIRECTORY.

    Raises:
        UsageError: another one does.
    """
    with (directory / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UsageError(
                f"another fleet serves {directory}",
                why=f"process {lock.read().strip() or 'unknown'} holds its lock",
                fix="stop it first, or give another --data directory",
                reason="already_running",
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
