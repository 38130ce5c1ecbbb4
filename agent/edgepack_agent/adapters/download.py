"""A resumable store for blobs: chunk after chunk, each checked as it arrives. Trusts nobody.

Killed anywhere, the next try asks for the missing chunks only (see `partial`). A chunk that is
not as signed is asked for again alone. A blob gets its name when its SHA-256 is right, never
before, and is never fetched again as long as it is here.
"""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from edgepack.chunks import CHUNK_SIZE
from edgepack.durable import BlobSink, sweep
from edgepack.errors import EdgepackError, IntegrityError
from edgepack_agent.adapters.partial import Partial, claimed

__all__ = ["BlobSource", "Cancelled", "DiskFullError", "Downloads", "disk_errors"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
Cancelled = Callable[[], bool]


class DiskFullError(EdgepackError):
    """There is no room for a blob; what had been written of it is removed."""

    default_reason = "disk_full"


class BlobSource(Protocol):
    """Where blocks come from: MQTT, a test."""

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        """Yield COUNT blocks of 64 KiB of a blob from block START, in order.

        Only the last block of the blob may be shorter.

        Raises:
            UnreachableError: no answer, or none any more.
            IntegrityError: the other side does not have the blob (reason `blob_missing`).
        """
        ...


class Downloads:
    """Blobs by SHA-256, complete and under way.

    Args:
        blobs: Directory of the complete ones.
        parts: Directory, on the same file system, of those under way.
    """

    def __init__(self, blobs: Path, parts: Path) -> None:
        self._blobs, self._parts = blobs, parts
        blobs.mkdir(parents=True, exist_ok=True)
        parts.mkdir(parents=True, exist_ok=True)
        sweep(blobs)

    def path(self, sha256: str) -> Path:
        """Return where the blob SHA256 is once it is complete."""
        return self._blobs / sha256

    def has(self, sha256: str, size: int) -> bool:
        """Say whether the blob is complete, without reading it."""
        path = self.path(sha256)
        return path.is_file() and path.stat().st_size == size

    def checked(self, sha256: str) -> Path:
        """Return where the blob SHA256 is, after reading all of it.

        Raises:
            EdgepackError: it is missing or damaged (reason `damaged_blob`).
        """
        with contextlib.suppress(OSError), self.path(sha256).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return self.path(sha256)
        self.drop(sha256)
        raise EdgepackError(f"blob {sha256[:12]} was damaged on disk", reason="damaged_blob")

    def missing(self, sha256: str, size: int) -> int:
        """Return the bytes still to fetch of a blob."""
        if self.has(sha256, size):
            return 0
        return size - claimed(self._parts, sha256, size)

    def room(self, sha256: str, size: int) -> int:
        """Return the bytes of disk that a blob still takes: what is under way has its room."""
        if self.has(sha256, size):
            return 0
        with contextlib.suppress(OSError):
            return max(0, size - 512 * (self._parts / f"{sha256}.part").stat().st_blocks)
        return size

    def fetch(
        self,
        sha256: str,
        size: int,
        source: BlobSource,
        *,
        chunks: Sequence[str] = (),
        cancelled: Cancelled = lambda: False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Complete the blob SHA256 of SIZE bytes from SOURCE.

        Args:
            sha256: Its signed digest, in hex.
            size: Its signed length.
            source: Asked for the chunks that are missing.
            chunks: The signed digests of its chunks. Without them what is wrong is found only
                when all of it is there; a blob of one chunk needs none.
            cancelled: Looked at before every block.
            progress: Told the bytes of every block that arrives.

        Raises:
            UnreachableError: SOURCE stopped answering; what is right is kept.
            IntegrityError: the content is not what was signed; chunks that are right are kept.
            DiskFullError: no room; nothing is kept.
            EdgepackError: cancelled (reason `cancelled`), or the disk fails (`storage`).
        """
        if self.has(sha256, size):
            return
        if not chunks and 0 < size <= CHUNK_SIZE:
            chunks = (sha256,)
        try:
            with disk_errors(), Partial(self._parts, sha256, size, chunks) as partial:
                self._complete(partial, sha256, size, _Counted(source, cancelled, progress))
        except DiskFullError:
            self._drop_part(sha256)
            raise

    def _complete(self, partial: Partial, sha256: str, size: int, source: "_Counted") -> None:
        try:
            while runs := list(partial.missing()):
                for first, end in runs:
                    blocks = source.blocks(sha256, size, *partial.blocks(first, end))
                    for chunk in range(first, end):
                        partial.take(chunk, blocks)
            partial.finish(self.path(sha256))
        except IntegrityError:
            if partial.empty:
                self._drop_part(sha256)
            raise

    def put(self, sha256: str, pieces: Iterable[bytes]) -> None:
        """Store the blob SHA256 from PIECES at hand, unless it is there.

        Raises:
            IntegrityError: the content is not what it is named by; nothing is kept.
            EdgepackError: no room (`disk_full`), or the disk fails (`storage`).
        """
        if self.path(sha256).exists():
            return
        with disk_errors(), BlobSink(self.path(sha256), sha256) as sink:
            for piece in pieces:
                sink.write(piece)

    def drop(self, sha256: str) -> None:
        """Remove the blob SHA256, whatever there is of it."""
        self.path(sha256).unlink(missing_ok=True)
        self._drop_part(sha256)

    def keep_only(self, wanted: Iterable[str]) -> None:
        """Remove every blob but WANTED, complete or not."""
        kept = set(wanted)
        for path in (*self._blobs.iterdir(), *self._parts.iterdir()):
            name = path.name.partition(".")[0]
            # What a cut left beside a blob that has just become complete is of no use either.
            done = path.parent == self._parts and self.path(name).exists()
            if name not in kept or done:
                path.unlink(missing_ok=True)

    def _drop_part(self, sha256: str) -> None:
        for path in self._parts.glob(f"{sha256}.*"):
            path.unlink(missing_ok=True)


class _Counted:
    """A source that looks for cancellation and tells progress with every block."""

    def __init__(
        self, source: BlobSource, cancelled: Cancelled, progress: Callable[[int], None]
    ) -> None:
        self._source, self._cancelled, self._progress = source, cancelled, progress

    def blocks(self, sha256: str, size: int, start: int, count: int) -> Iterator[bytes]:
        for block in self._source.blocks(sha256, size, start, count):
            if self._cancelled():
                raise EdgepackError("the download was cancelled", reason="cancelled")
            self._progress(len(block))
            yield block


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn an OSError into a DiskFullError, or an EdgepackError with reason `storage`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                "the disk is full",
                why=error.strerror or str(error),
                fix="free some space; the model that runs is not touched",
            ) from error
        raise EdgepackError("the disk fails", why=str(error), reason="storage") from error
