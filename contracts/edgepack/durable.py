"""Files that survive a power cut: the old content or the new, never a mixture. Reads nothing.

Every write goes to a temporary file in the same directory, is fsynced, renamed, and the
directory fsynced. What is interrupted leaves a name that starts with `.part-`.
"""

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from edgepack.errors import IntegrityError

__all__ = ["PART", "BlobSink", "sweep", "sync_directory", "write_file"]

PART = ".part-"


def sync_directory(directory: Path) -> None:
    """Make the names in DIRECTORY durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the content of PATH by DATA; its directory is made if it is missing.

    Raises:
        OSError: it cannot be written; PATH is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            _set_mode(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sweep(directory: Path, older_s: float = 0.0) -> None:
    """Remove what interrupted writes left in DIRECTORY.

    Where others may be writing, only what nobody has touched for OLDER_S seconds.
    """
    for path in directory.glob(f"{PART}*"):
        with contextlib.suppress(FileNotFoundError):
            if not older_s or time.time() - path.stat().st_mtime > older_s:
                path.unlink(missing_ok=True)


class BlobSink:
    """Takes the content of a blob piece by piece; PATH appears only if all of it is right.

    A context manager: leaving it checks the digest, fsyncs and renames. Leaving it by an
    exception leaves nothing.

    Args:
        path: Where the blob goes.
        sha256: Digest its content must have, in hex.
        limit: Bytes it may have at most; None for no limit.
    """

    def __init__(self, path: Path, sha256: str, limit: int | None = None) -> None:
        self._path, self._sha256, self._limit = path, sha256, limit
        self._hash = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=PART, dir=path.parent)
        self._file, self._part = os.fdopen(handle, "wb"), Path(name)
        self.size = 0
        """Bytes taken so far."""

    def write(self, piece: bytes) -> None:
        """Take the next PIECE.

        Raises:
            IntegrityError: the blob is longer than its limit.
            OSError: the disk is full or failing.
        """
        self.size += len(piece)
        if self._limit is not None and self.size > self._limit:
            raise IntegrityError(
                f"blob {self._sha256[:12]} is longer than {self._limit} bytes", reason="too_long"
            )
        self._hash.update(piece)
        self._file.write(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            # Closing flushes, which fails once more on a full disk; the file goes either way.
            with contextlib.suppress(OSError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._hash.hexdigest() != self._sha256:
            raise IntegrityError(
                f"blob {self._sha256[:12]} does not have the digest it is named by",
                why=f"{self.size} bytes with SHA-256 {self._hash.hexdigest()} arrived",
                reason="digest_mismatch",
            )
        _set_mode(self._file.fileno(), 0o644)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        sync_directory(self._path.parent)


def _set_mode(handle: int, mode: int) -> None:
    # A USB stick's file system has no modes and refuses some; what is on it is public anyway.
    with contextlib.suppress(PermissionError):
        os.fchmod(handle, mode)
