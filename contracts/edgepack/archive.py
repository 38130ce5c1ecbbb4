"""An OCI image layout in a container: one image, its blobs, nothing else. Reads no manifest.

Written from measured contents; read in one pass, a MiB at a time, in which every blob's digest
is checked and every MiB of a large one hashed. What the blobs mean is `bundle`'s business.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from edgepack import oci
from edgepack.chunks import CHUNK_SIZE
from edgepack.container import ContainerReader, ContainerWriter
from edgepack.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Archive", "Content", "measure", "write_archive"]

_MAX_INDEX = 1024


@dataclass(frozen=True, slots=True)
class Content:
    """A blob to be written: where its bytes are, and what they measure."""

    source: Path | bytes
    sha256: str
    size: int
    crc: int
    chunks: tuple[str, ...]
    """SHA-256 of every chunk; none if the content is not larger than one."""

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes, a chunk at a time."""
        return _pieces(self.source)


def measure(source: Path | bytes) -> Content:
    """Return SOURCE, a file or the bytes themselves, with its measures."""
    meter, crc, size = _Meter(), 0, 0
    for piece in _pieces(source):
        meter(piece)
        crc = zlib.crc32(piece, crc)
        size += len(piece)
    return Content(source, meter.sha256(), size, crc, meter.chunks())


def write_archive(file: BinaryIO, oci_manifest: bytes, contents: Mapping[str, Content]) -> int:
    """Write the layout of OCI_MANIFEST to FILE and return its size in bytes.

    Args:
        file: Open for writing, empty.
        oci_manifest: The image manifest.
        contents: SHA-256 to content of every blob it names.

    Raises:
        UnsupportedError: it would be larger than 4 GiB.
    """
    writer = ContainerWriter(file)
    image = measure(oci_manifest)
    members = {
        "oci-layout": measure(oci.LAYOUT),
        "index.json": measure(oci.write_index(oci_manifest)),
        _blob_name(image.sha256): image,
    }
    blobs = oci.read_oci_manifest(oci_manifest).blobs()
    members |= {_blob_name(sha256): contents[sha256] for sha256 in blobs}
    for name, content in members.items():
        writer.add(name, content.size, content.crc, content.pieces())
    return writer.finish()


class Archive:
    """An open archive, its form and every digest checked.

    Attributes:
        size: Bytes in the file.
        oci_manifest: The image manifest's bytes.
        image: The same, read.
        chunks: SHA-256 of a blob larger than a chunk to those of its chunks.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._starts: dict[str, int] = {}
        self.chunks: dict[str, tuple[str, ...]] = {}
        self.size = os.fstat(file.fileno()).st_size
        reader = ContainerReader(file, self.size)
        self.oci_manifest = self._read_head(reader)
        self.image = oci.read_oci_manifest(self.oci_manifest)
        for sha256, size in self.image.blobs().items():
            self._read_blob(reader, sha256, size)
        reader.finish()

    def blobs(self) -> dict[str, int]:
        """Return SHA-256 to size of every blob, the image manifest first."""
        own = hashlib.sha256(self.oci_manifest).hexdigest()
        return {own: len(self.oci_manifest)} | self.image.blobs()

    def open_blob(self, sha256: str) -> BinaryIO:
        """Return the blob SHA256 as a file open for reading, with a position of its own.

        Raises:
            UsageError: there is no such blob.
        """
        if sha256 not in self._starts:
            raise UsageError(f"the bundle has no blob {sha256}", reason="no_such_blob")
        part = _Slice(self._file.fileno(), self._starts[sha256], self.blobs()[sha256])
        return cast("BinaryIO", io.BufferedReader(part))

    def pieces(self, sha256: str) -> Iterator[bytes]:
        """Yield the blob SHA256, a chunk at a time, and check it once more.

        Raises:
            IntegrityError: at the end, if the file was changed since it was opened.
        """
        whole = hashlib.sha256()
        with self.open_blob(sha256) as file:
            while piece := file.read(CHUNK_SIZE):
                whole.update(piece)
                yield piece
        if whole.hexdigest() != sha256:
            raise _wrong_digest(sha256)

    def close(self) -> None:
        """Close the file; blobs opened from it end with it."""
        self._file.close()

    def _read_head(self, reader: ContainerReader) -> bytes:
        """Return the image manifest that the layout's first members lead to."""
        if _document(reader, "oci-layout", len(oci.LAYOUT)) != oci.LAYOUT:
            raise IntegrityError("oci-layout is not what it must be", reason="bad_image")
        index = _document(reader, "index.json", min(reader.next_size(), _MAX_INDEX))
        sha256, size = oci.read_index(index)
        kept: list[bytes] = []
        self._starts[sha256] = reader.read(_blob_name(sha256), size, kept.append)
        image = b"".join(kept)
        if hashlib.sha256(image).hexdigest() != sha256:
            raise _wrong_digest(sha256)
        return image

    def _read_blob(self, reader: ContainerReader, sha256: str, size: int) -> None:
        meter = _Meter()
        self._starts[sha256] = reader.read(_blob_name(sha256), size, meter)
        if meter.sha256() != sha256:
            raise _wrong_digest(sha256)
        if meter.chunks():
            self.chunks[sha256] = meter.chunks()


class _Meter:
    """Hashes a content that arrives a chunk at a time."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._chunks: list[bytes] = []

    def __call__(self, piece: bytes) -> None:
        self._whole.update(piece)
        self._chunks.append(hashlib.sha256(piece).digest())

    def sha256(self) -> str:
        return self._whole.hexdigest()

    def chunks(self) -> tuple[str, ...]:
        return tuple(chunk.hex() for chunk in self._chunks) if len(self._chunks) > 1 else ()


class _Slice(io.RawIOBase):
    """A part of an open file, with its own position."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        super().__init__()
        self._handle, self._start, self._size, self._at = handle, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        count = os.preadv(self._handle, [view[:wanted]], self._start + self._at) if wanted else 0
        self._at += count
        return count


def _pieces(source: Path | bytes) -> Iterator[bytes]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while piece := file.read(CHUNK_SIZE):
            yield piece


def _document(reader: ContainerReader, name: str, size: int) -> bytes:
    kept: list[bytes] = []
    reader.read(name, size, kept.append)
    return b"".join(kept)


def _blob_name(sha256: str) -> str:
    return f"blobs/sha256/{sha256}"


def _wrong_digest(sha256: str) -> IntegrityError:
    return IntegrityError(
        f"a blob is not what its name says: {sha256}",
        fix="fetch the bundle again from its publisher",
        reason="digest_mismatch",
    )
