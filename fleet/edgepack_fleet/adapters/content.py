"""Blobs by digest in a directory. Does not know what they are or who may have them.

`DIR/sha256/HEX`, as in an OCI layout and in a repository on a USB stick. A blob is there whole
and right, or not at all.
"""

import errno
import os
import re
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from edgepack.durable import BlobSink, sweep
from edgepack.errors import BudgetError, UsageError

__all__ = ["Content", "ContentStore", "check_digest"]

PIECE = 1024 * 1024
STALE_S = 86_400.0
"""Seconds after which what an upload of another process left behind is given up."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Content(Protocol):
    """Blobs by digest, wherever they are; what each method promises is said at `ContentStore`."""

    def put(
        self, sha256: str, stream: BinaryIO | Iterable[bytes], *, limit: int | None = None
    ) -> int:
        """Store the blob SHA256 from STREAM and return its size in bytes."""

    def has(self, sha256: str) -> bool:
        """Return whether the blob SHA256 is here."""

    def size(self, sha256: str) -> int | None:
        """Return the size of the blob SHA256 in bytes; None if it is not here."""

    def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return LENGTH bytes of the blob SHA256 from OFFSET, fewer at its end."""

    def pieces(self, sha256: str, first: int, end: int, length: int) -> Generator[bytes]:
        """Yield the bytes from FIRST to END of the blob SHA256 in pieces of LENGTH."""

    def drop(self, sha256: str) -> None:
        """Remove the blob SHA256, if it is here."""


class ContentStore:
    """The blobs below DIRECTORY.

    Args:
        directory: Gets `sha256/`.
        shared: Whether other processes write there too.
    """

    def __init__(self, directory: Path, *, shared: bool = False) -> None:
        self.directory = directory
        self._blobs = directory / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        sweep(self._blobs, STALE_S if shared else 0.0)

    def put(
        self, sha256: str, stream: BinaryIO | Iterable[bytes], *, limit: int | None = None
    ) -> int:
        """Store the blob SHA256 from STREAM and return its size in bytes.

        A blob that is there is left alone; STREAM is still read and checked.

        Args:
            sha256: Digest the content must have, in hex.
            stream: A file open for reading, or pieces of bytes.
            limit: Bytes it may have at most.

        Raises:
            UsageError: SHA256 is not a digest.
            IntegrityError: the content has another digest, or is too long.
            BudgetError: the disk is full (reason `disk_full`); nothing is left behind.
        """
        path = self.path(sha256)
        try:
            with BlobSink(path, sha256, limit) as sink:
                for piece in _pieces(stream):
                    sink.write(piece)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise BudgetError(
                f"no room for blob {sha256[:12]}",
                why=error.strerror or str(error),
                fix=f"make room on the disk of {self._blobs}",
                reason="disk_full",
            ) from error
        return sink.size

    def has(self, sha256: str) -> bool:
        """Return whether the blob SHA256 is here."""
        return self.size(sha256) is not None

    def size(self, sha256: str) -> int | None:
        """Return the size of the blob SHA256 in bytes; None if it is not here."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return LENGTH bytes of the blob SHA256 from OFFSET, fewer at its end.

        Raises:
            FileNotFoundError: it is not here.
        """
        with self.path(sha256).open("rb") as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def pieces(self, sha256: str, first: int, end: int, length: int) -> Generator[bytes]:
        """Yield the bytes from FIRST to END of the blob SHA256 in pieces of LENGTH.

        Raises:
            FileNotFoundError: it is not here.
        """
        with self.path(sha256).open("rb", buffering=0) as file:
            for at in range(first, end, length):
                yield os.pread(file.fileno(), min(length, end - at), at)

    def drop(self, sha256: str) -> None:
        """Remove the blob SHA256, if it is here."""
        self.path(sha256).unlink(missing_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where the blob SHA256 is, or would be.

        Raises:
            UsageError: SHA256 is not a digest.
        """
        return self._blobs / check_digest(sha256)


def check_digest(sha256: str) -> str:
    """Return SHA256 if it is one, in hex.

    Raises:
        UsageError: it is not.
    """
    if not _DIGEST.fullmatch(sha256):
        raise UsageError(f"{sha256[:80]!r} is not a SHA-256 in hex", reason="bad_digest")
    return sha256


def _pieces(stream: BinaryIO | Iterable[bytes]) -> Iterable[bytes]:
    if hasattr(stream, "read"):
        return iter(lambda: stream.read(PIECE), b"")
    return stream
