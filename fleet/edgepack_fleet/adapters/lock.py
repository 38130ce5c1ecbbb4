"""The data directory: its owner's alone, and locked. A lock ends when its process does."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from edgepack.errors import UsageError

__all__ = ["alone", "if_free", "one_of", "only_one", "own"]


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
    with _place(directory, 1) as lock:
        if not _take(lock):
            lock.seek(0)
            raise UsageError(
                f"another fleet serves {directory}",
                why=f"process {lock.read().strip() or 'unknown'} holds its lock",
                fix="stop it first, or give another --data directory; several workers need "
                "PostgreSQL (--database)",
                reason="already_running",
            )
        yield


@contextmanager
def one_of(directory: Path, most: int) -> Iterator[int]:
    """Be one of at most MOST processes that serve DIRECTORY; yield which, from 1 on.

    Raises:
        UsageError: there are so many already.
    """
    for number in range(1, most + 1):
        with _place(directory, number) as lock:
            if _take(lock):
                yield number
                return
    raise UsageError(
        f"{most} workers serve {directory} already",
        why="the broker's access list knows no more of them",
        fix="stop one first",
        reason="already_running",
    )


def _place(directory: Path, number: int) -> TextIO:
    """Return the open lock of a place; the first one is the same as of who serves alone."""
    return (directory / ("serve.lock" if number == 1 else f"serve-{number}.lock")).open("a+")


def _take(lock: TextIO) -> bool:
    """Take LOCK and write down who has it; return whether it was free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return True
