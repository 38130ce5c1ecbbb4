"""The data directory: its owner's alone, and locked. A lock ends when its process does."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.errors import UsageError

__all__ = ["alone", "if_free", "only_one", "own"]


def own(directory: Path) -> Path:
    """Return DIRECTORY, made for its owner alone if it was not there.

    Raises:
        UsageError: it cannot be made or used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (directory / ".lock").open("a"):
            return directory
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be used",
            why=error.strerror or str(error),
            fix="give another --data directory, or make it writable",
            reason="data",
        ) from error


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Wait for the lock of DIRECTORY and hold it."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def if_free(directory: Path, name: str) -> Iterator[bool]:
    """Hold the lock NAME of DIRECTORY unless another process does; yield whether we hold it."""
    with (directory / name).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


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
