"""One blob under way: a part file and a map of what is in it. Believes neither of them.

`SHA256.part` holds the content, `SHA256.map` 32 bytes for every chunk of 1 MiB: the SHA-256 of
that chunk as it was written, zeros for one that was not. Whoever opens them after an interruption
reads every chunk that the map claims and keeps those whose content is what the map says, and what
the signed chunk list says where there is one. So neither file needs an order among its writes: a
torn map, a torn part, a lost page only cost the chunks they are about.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgepack.chunks import CHUNK_SIZE
from edgepack.durable import sync_directory
from edgepack.errors import IntegrityError
from edgepack.topics import BLOCK_SIZE

__all__ = ["LAG", "Partial", "chunk_count", "chunk_size", "claimed"]

BLOCKS_PER_CHUNK = CHUNK_SIZE // BLOCK_SIZE
DIGEST = 32
NOTHING = bytes(DIGEST)
LAG = 1
"""Chunks that may be written and not yet be durable; blocks on their way come meanwhile."""
TRIES = 3
"""Times that one chunk may arrive wrong."""


class Partial:
    """A blob under way, opened: what is right of it, and where more goes.

    Args:
        directory: Where its two files are.
        sha256: Its signed digest, in hex.
        size: Its signed length.
        chunks: The signed digests of its chunks; none where no list names it.

    Raises:
        OSError: the disk is full or failing.
    """

    def __init__(self, directory: Path, sha256: str, size: int, chunks: Sequence[str]) -> None:
        self._directory, self._sha256, self._size = directory, sha256, size
        self._signed = [bytes.fromhex(chunk) for chunk in chunks]
        self._part, self._map = directory / f"{sha256}.part", directory / f"{sha256}.map"
        self._wrong = [0] * chunk_count(size)
        self._whole, self._hashed = hashlib.sha256(), 0
        with contextlib.ExitStack() as stack:
            self._file = _open(self._part, stack)
            self._marks = _open(self._map, stack)
            self._have = self._believe(_read_map(self._map, len(self._wrong)))
            self._make_room()
            self._syncer = _Syncer(self._sync)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # In this order: what is written becomes durable even where the transfer failed.
        try:
            self._syncer.close()
        finally:
            self._stack.close()

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it that is worth keeping."""
        return not any(self._have)

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield first and end of every run of chunks that are missing now."""
        first = None
        for chunk, digest in enumerate((*self._have, NOTHING)):
            if digest is None and first is None:
                first = chunk
            elif digest is not None and first is not None:
                yield first, chunk
                first = None

    def blocks(self, first: int, end: int) -> tuple[int, int]:
        """Return the first block and the number of blocks of the chunks from FIRST to END."""
        start = first * BLOCKS_PER_CHUNK
        return start, min(end * BLOCKS_PER_CHUNK, -(-self._size // BLOCK_SIZE)) - start

    def take(self, chunk: int, blocks: Iterator[bytes]) -> None:
        """Write CHUNK from BLOCKS, which come next; one that is not as signed stays missing.

        Raises:
            IntegrityError: a block has a wrong length (`bad_block`), or the chunk has come wrong
                too often (`digest_mismatch`).
            OSError: the disk is full or failing.
        """
        digest, whole = hashlib.sha256(), self._whole.copy()
        in_order = chunk == self._hashed
        offset, left = chunk * CHUNK_SIZE, chunk_size(self._size, chunk)
        while left > 0:
            block = next(blocks, b"")
            if len(block) != min(BLOCK_SIZE, left):
                raise IntegrityError(f"a block of {len(block)} bytes came", reason="bad_block")
            digest.update(block)
            if in_order:
                whole.update(block)
            os.pwrite(self._file, block, offset)
            offset, left = offset + len(block), left - len(block)
        if self._signed and digest.digest() != self._signed[chunk]:
            self._refuse(chunk, digest.hexdigest())
            return
        if in_order:
            self._whole, self._hashed = whole, chunk + 1
        self._have[chunk] = digest.digest()
        os.pwrite(self._marks, digest.digest(), chunk * DIGEST)
        self._syncer.written()

    def finish(self, target: Path) -> None:
        """Give the blob its name TARGET, when all of it is right and durable.

        Raises:
            IntegrityError: its digest is not the signed one (`digest_mismatch`).
            OSError: the disk is full or failing.
        """
        self._syncer.close()
        for chunk in range(self._hashed, len(self._have)):
            self._whole.update(self._read(chunk))
        found = self._whole.hexdigest()
        if found != self._sha256:
            self._have = [None] * len(self._have)
            raise IntegrityError(
                f"blob {self._sha256[:12]} did not arrive as it was signed",
                why=f"its SHA-256 is {found[:12]}",
                reason="digest_mismatch",
            )
        self._part.chmod(0o644)
        self._part.replace(target)
        sync_directory(target.parent)
        self._map.unlink(missing_ok=True)

    def _believe(self, claims: Sequence[bytes]) -> list[bytes | None]:
        """Return those of CLAIMS that the part file bears out."""
        if self._signed and len(self._signed) != len(claims):
            raise IntegrityError("the chunk list is of another length", reason="bad_chunks")
        return [self._check(chunk, claim) for chunk, claim in enumerate(claims)]

    def _check(self, chunk: int, claim: bytes) -> bytes | None:
        if claim == NOTHING or (self._signed and claim != self._signed[chunk]):
            return None
        content = self._read(chunk)
        if hashlib.sha256(content).digest() != claim:
            return None
        if chunk == self._hashed:
            self._whole.update(content)
            self._hashed = chunk + 1
        return claim

    def _read(self, chunk: int) -> bytes:
        return os.pread(self._file, chunk_size(self._size, chunk), chunk * CHUNK_SIZE)

    def _make_room(self) -> None:
        os.ftruncate(self._marks, DIGEST * len(self._have))
        os.pwrite(self._marks, b"".join(digest or NOTHING for digest in self._have), 0)
        if self._size:
            # A full disk is noticed here, not in the middle.
            os.posix_fallocate(self._file, 0, self._size)
        os.fsync(self._file)
        sync_directory(self._directory)

    def _refuse(self, chunk: int, found: str) -> None:
        self._wrong[chunk] += 1
        if self._wrong[chunk] >= TRIES:
            raise IntegrityError(
                f"chunk {chunk} of blob {self._sha256[:12]} does not arrive as it was signed",
                why=f"{TRIES} times it had another digest, last {found[:12]}",
                reason="digest_mismatch",
            )

    def _sync(self) -> None:
        os.fsync(self._file)
        os.fsync(self._marks)


class _Syncer:
    """Makes what is written durable, in a thread beside the transfer and never far behind it."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self._sync, self._changed = sync, threading.Condition()
        self._waiting, self._closed = 0, False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def written(self) -> None:
        """Note a chunk; wait if too many are not durable yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
            self._thread.start()
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting < LAG or self._error)
            self._raise()

    def close(self) -> None:
        """Wait until everything noted is durable; end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        while (count := self._wait()) > 0:
            try:
                self._sync()
            except Exception as error:  # noqa: BLE001 - it is raised where it can be handled
                self._error = error
            with self._changed:
                self._waiting -= count
                self._changed.notify_all()

    def _wait(self) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting


def claimed(directory: Path, sha256: str, size: int) -> int:
    """Return the bytes that the map of a blob claims to be there; nobody has looked."""
    claims = _read_map(directory / f"{sha256}.map", chunk_count(size))
    return sum(chunk_size(size, chunk) for chunk, claim in enumerate(claims) if claim != NOTHING)


def chunk_count(size: int) -> int:
    """Return how many chunks a blob of SIZE bytes has."""
    return -(-size // CHUNK_SIZE)


def chunk_size(size: int, chunk: int) -> int:
    """Return the bytes in CHUNK of a blob of SIZE bytes."""
    return min(CHUNK_SIZE, size - chunk * CHUNK_SIZE)


def _open(path: Path, stack: contextlib.ExitStack) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, handle)
    return handle


def _read_map(path: Path, chunks: int) -> list[bytes]:
    try:
        data = path.read_bytes()[: chunks * DIGEST]
    except FileNotFoundError:
        data = b""
    data = data.ljust(chunks * DIGEST, b"\0")
    return [data[at : at + DIGEST] for at in range(0, len(data), DIGEST)]
