"""A resumable store for blobs: chunk after chunk, each durable before it counts. Trusts nobody.

A blob that is under way is two files: `SHA256.part` with the content, and `SHA256.map` with one
byte per chunk of 1 MiB, set after the chunk has been fsynced. Killed anywhere, the next try
asks for the missing chunks only. A blob gets its name when its SHA-256 is right, never before.
Verifying single chunks against a signed list is a seam: `_take` is where it goes.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from edgepack.chunks import CHUNK_SIZE
from edgepack.durable import BlobSink, sweep, sync_directory
from edgepack.errors import EdgepackError, IntegrityError
from edgepack.topics import BLOCK_SIZE

__all__ = ["BlobSource", "Cancelled", "DiskFullError", "Downloads", "disk_errors"]

BLOCKS_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE
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
        done = _read_map(self._parts / f"{sha256}.map", _chunks(size))
        return sum(_chunk_size(size, chunk) for chunk, have in enumerate(done) if not have)

    def fetch(
        self,
        sha256: str,
        size: int,
        source: BlobSource,
        *,
        cancelled: Cancelled = lambda: False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Complete the blob SHA256 of SIZE bytes from SOURCE.

        Args:
            sha256: Its signed digest, in hex.
            size: Its signed length.
            source: Asked for the chunks that are missing.
            cancelled: Looked at before every block.
            progress: Told the bytes of every block that arrives.

        Raises:
            UnreachableError: SOURCE stopped answering; what is durable is kept.
            IntegrityError: the content is not what was signed; nothing is kept.
            DiskFullError: no room; nothing is kept.
            EdgepackError: cancelled (reason `cancelled`), or the disk fails (`storage`).
        """
        if self.has(sha256, size):
            return
        part, done = self._parts / f"{sha256}.part", self._parts / f"{sha256}.map"
        try:
            with disk_errors():
                self._fill(part, done, size, _Counted(source, cancelled, progress), sha256)
                self._finish(part, done, sha256)
        except (DiskFullError, IntegrityError):
            part.unlink(missing_ok=True)
            done.unlink(missing_ok=True)
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
        for path in (self.path(sha256), *self._parts.glob(f"{sha256}.*")):
            path.unlink(missing_ok=True)

    def keep_only(self, wanted: Iterable[str]) -> None:
        """Remove every blob but WANTED, complete or not."""
        kept = set(wanted)
        for path in (*self._blobs.iterdir(), *self._parts.iterdir()):
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)

    def _fill(self, part: Path, done: Path, size: int, source: "_Counted", sha256: str) -> None:
        with _opened(part) as file, _opened(done) as marks:
            have = _read_map(done, _chunks(size))
            os.ftruncate(marks, len(have))
            if size:
                # A full disk is noticed here, not in the middle.
                os.posix_fallocate(file, 0, size)
            sync_directory(self._parts)
            for first, last in _runs(have):
                start, end = first * BLOCKS_PER_CHUNK, _blocks(size, last)
                blocks = source.blocks(sha256, size, start, end - start)
                for chunk in range(first, last):
                    _take(file, chunk, size, blocks)
                    os.fsync(file)
                    os.pwrite(marks, b"\1", chunk)
                    os.fsync(marks)

    def _finish(self, part: Path, done: Path, sha256: str) -> None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise IntegrityError(
                f"blob {sha256[:12]} did not arrive as it was signed",
                why=f"its SHA-256 is {found[:12]}",
                reason="digest_mismatch",
            )
        part.chmod(0o644)
        part.replace(self.path(sha256))
        sync_directory(self._blobs)
        done.unlink(missing_ok=True)


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


def _take(file: int, chunk: int, size: int, blocks: Iterator[bytes]) -> None:
    """Write the blocks of CHUNK, which come next."""
    offset, left = chunk * CHUNK_SIZE, _chunk_size(size, chunk)
    while left > 0:
        block = next(blocks, b"")
        if len(block) != min(BLOCK_SIZE, left):
            raise IntegrityError(f"a block of {len(block)} bytes came", reason="bad_block")
        os.pwrite(file, block, offset)
        offset, left = offset + len(block), left - len(block)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _runs(have: bytes) -> Iterator[tuple[int, int]]:
    """Yield first and end of every run of chunks that are missing."""
    first = None
    for chunk, done in enumerate((*have, 1)):
        if not done and first is None:
            first = chunk
        elif done and first is not None:
            yield first, chunk
            first = None


def _read_map(path: Path, chunks: int) -> bytes:
    try:
        data = path.read_bytes()[:chunks]
    except FileNotFoundError:
        data = b""
    return data.ljust(chunks, b"\0")


def _chunks(size: int) -> int:
    return -(-size // CHUNK_SIZE)


def _chunk_size(size: int, chunk: int) -> int:
    return min(CHUNK_SIZE, size - chunk * CHUNK_SIZE)


def _blocks(size: int, chunks: int) -> int:
    """Return how many blocks the first CHUNKS chunks of a blob of SIZE bytes have."""
    return min(chunks * BLOCKS_PER_CHUNK, -(-size // BLOCK_SIZE))
