"""The one zip a list of members can become, written and checked. Knows nothing of bundles.

Every byte follows from the members' names and contents: stored, no dates (1 January 1980), no
flags, comments or attributes. Members of 64 KiB and more start at a multiple of 4096, padded
by the extra field Android's zipalign uses, so that they can be mapped into memory in place.

The reader never parses a directory. It walks the file from the front, told which member must
come next, rebuilds each header and compares; at the end it rebuilds the central directory and
compares that too. So nothing can hide, and zip readers cannot disagree about the content.
"""

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from edgepack.errors import IntegrityError, UnsupportedError

__all__ = ["ALIGNMENT", "ALIGN_FROM", "MAX_SIZE", "PIECE", "ContainerReader", "ContainerWriter"]

ALIGNMENT = 4096
ALIGN_FROM = 64 * 1024
"""Size in bytes from which a member is aligned."""
MAX_SIZE = 2**32 - 1
"""Bytes in a container; without zip64, which no two readers treat alike."""
PIECE = 1024 * 1024
"""Bytes handled at a time; never a whole model."""

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_VERSION = 10
_MIDNIGHT, _FIRST_DAY = 0, 0x21
_ALIGN_FIELD = 0xD935
_ALIGN_HEAD = 6


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    size: int
    crc: int
    offset: int

    def padding(self) -> bytes:
        """Return the extra field that moves the content to its alignment."""
        start = self.offset + _LOCAL.size + len(self.name)
        if self.size < ALIGN_FROM or start % ALIGNMENT == 0:
            return b""
        zeros = -(start + _ALIGN_HEAD) % ALIGNMENT
        return struct.pack("<HHH", _ALIGN_FIELD, 2 + zeros, ALIGNMENT) + bytes(zeros)

    def local_header(self) -> bytes:
        """Return what stands before the content."""
        extra = self.padding()
        fixed = _LOCAL.pack(
            b"PK\x03\x04", _VERSION, 0, 0, _MIDNIGHT, _FIRST_DAY, self.crc, self.size, self.size,
            len(self.name), len(extra),
        )  # fmt: skip
        return fixed + self.name + extra

    def central_header(self) -> bytes:
        """Return the member's entry in the central directory."""
        fixed = _CENTRAL.pack(
            b"PK\x01\x02", _VERSION, _VERSION, 0, 0, _MIDNIGHT, _FIRST_DAY, self.crc, self.size,
            self.size, len(self.name), 0, 0, 0, 0, 0, self.offset,
        )  # fmt: skip
        return fixed + self.name


def _directory(members: list[_Member], offset: int) -> bytes:
    entries = b"".join(member.central_header() for member in members)
    count = len(members)
    return entries + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(entries), offset, 0)


class ContainerWriter:
    """Writes members one after the other to a file that is open for writing at 0."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._members: list[_Member] = []
        self._offset = 0

    def add(self, name: str, size: int, crc: int, pieces: Iterable[bytes]) -> None:
        """Write a member of SIZE bytes with checksum CRC, whose content PIECES yields.

        Raises:
            UnsupportedError: the container would pass 4 GiB.
        """
        member = _Member(name.encode("ascii"), size, crc, self._offset)
        header = member.local_header()
        self._members.append(member)
        self._offset += len(header) + size
        if self._offset + len(_directory(self._members, 0)) > MAX_SIZE:
            raise UnsupportedError(
                "the bundle would be larger than 4 GiB",
                fix="choose a smaller model or a lower precision",
                reason="too_large",
            )
        self._file.write(header)
        self._file.writelines(pieces)

    def finish(self) -> int:
        """Write the central directory and return the size of the container in bytes."""
        directory = _directory(self._members, self._offset)
        self._file.write(directory)
        return self._offset + len(directory)


class ContainerReader:
    """Walks a container of SIZE bytes from the front, comparing every byte."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        if size > MAX_SIZE:
            raise _bad("it is larger than 4 GiB")
        self._file = file
        self._size = size
        self._members: list[_Member] = []
        self._offset = 0

    def next_size(self) -> int:
        """Return the size the next member claims; only for a member nothing else describes."""
        head = self._file.read(_LOCAL.size)
        self._file.seek(self._offset)
        if len(head) < _LOCAL.size:
            raise _bad("it ends early")
        size: int = _LOCAL.unpack(head)[8]
        return size

    def read(self, name: str, size: int, sink: Callable[[bytes], object]) -> int:
        """Pass the content of the next member, NAME of SIZE bytes, to SINK in pieces of 1 MiB.

        Returns:
            Offset of the content in the file.

        Raises:
            IntegrityError: another member comes next, or a byte is not what it must be.
        """
        head = self._file.read(_LOCAL.size)
        crc: int = _LOCAL.unpack(head)[6] if len(head) == _LOCAL.size else 0
        member = _Member(name.encode("ascii"), size, crc, self._offset)
        expected = member.local_header()
        start = self._offset + len(expected)
        if head + self._file.read(len(expected) - len(head)) != expected:
            raise _bad(f"the header of {name} at byte {self._offset} is not what it must be")
        if start + size > self._size:
            raise _bad("it ends early")
        if self._content(size, sink) != crc:
            raise _bad(f"the checksum of {name} does not match")
        self._members.append(member)
        self._offset = start + size
        return start

    def finish(self) -> None:
        """Check that exactly the central directory of the members read follows, and the end."""
        expected = _directory(self._members, self._offset)
        if self._size != self._offset + len(expected):
            raise _bad("it is cut short, or something follows its end")
        if self._file.read(len(expected)) != expected:
            raise _bad("its directory does not match its content")

    def _content(self, size: int, sink: Callable[[bytes], object]) -> int:
        crc = 0
        while size:
            piece = self._file.read(min(size, PIECE))
            if not piece:
                raise _bad("it ends early")
            crc = zlib.crc32(piece, crc)
            sink(piece)
            size -= len(piece)
        return crc


def _bad(why: str) -> IntegrityError:
    return IntegrityError(
        "not a valid bundle file",
        why=why,
        fix="fetch the bundle again from its publisher",
        reason="bad_container",
    )
