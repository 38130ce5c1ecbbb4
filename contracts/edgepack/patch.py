"""A patch: a blob written as what differs from another one. Applies patches, makes none.

    magic    8  b"EPPATCH1"
    codec    1  1 zstd, 2 bsdiff
    frames   4
    base     40  SHA-256 and size
    target   40  SHA-256 and size
    then FRAMES times, in the order of the target:
    base window   12  offset and length
    target length  4
    payload length 4, payload

All numbers are unsigned and big-endian. A frame makes at most 8 MiB of the target out of at most
16 MiB of the base, so what applying costs in memory does not depend on the size of the model.

- `zstd`: one zstd frame, with the base window as its prefix.
- `bsdiff`: raw LZMA2 of records `seek i32, add u32, copy u32`: SEEK bytes of the base are skipped,
  ADD bytes follow, to be added to those of the base, and COPY bytes to be taken as they are.

A patch is not signed and need not be: only the result counts, and its SHA-256 is. What is read
here may come from anybody, so every length is checked before anything is made of it.
"""

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Literal, Protocol, get_args

from edgepack.errors import IntegrityError

__all__ = [
    "CODECS",
    "FRAME_BASE",
    "FRAME_TARGET",
    "LZMA_DICTIONARY",
    "MAX_SIZE",
    "MIN_PREFIX",
    "RECORD",
    "WINDOW_LOG",
    "Codec",
    "Frame",
    "Header",
    "PatchError",
    "apply_patch",
    "preload",
    "read_header",
    "write_frame",
    "write_header",
    "zstd_module",
]

Codec = Literal["zstd", "bsdiff"]
CODECS: tuple[Codec, ...] = get_args(Codec)
"""By their number in a patch, from 1."""
FRAME_TARGET = 8 * 2**20
"""Bytes of the target that one frame makes at most."""
FRAME_BASE = 16 * 2**20
"""Bytes of the base that one frame may look at."""
MAX_SIZE = 8 * 2**30
"""Bytes that a base or a target may have."""
MAX_PAYLOAD = FRAME_TARGET + 2**20
WINDOW_LOG = 25
"""Reaches over a base window and a frame, 24 MiB together."""
LZMA_DICTIONARY = 8 * 2**20
MIN_PREFIX = 8
"""Bytes that a base window of zstd has at least; a shorter one is none."""
RECORD = struct.Struct(">iII")
"""Bytes of the base to skip, bytes to add to it, bytes to take as they are."""

_MAGIC = b"EPPATCH1"
_HEADER = struct.Struct(">8sBI32sQ32sQ")
_FRAME = struct.Struct(">QIII")
_PIECE = 64 * 1024


class PatchError(IntegrityError):
    """This is not a patch, or not one for this base."""

    default_reason = "bad_patch"


@dataclass(frozen=True, slots=True)
class Header:
    """Which blob a patch makes of which; digests in hex, sizes in bytes."""

    codec: Codec
    base: str
    base_size: int
    target: str
    target_size: int
    frames: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A stretch of the target, and the window of the base that it is made from."""

    offset: int
    base_length: int
    target_length: int
    payload_length: int


def write_header(file: IO[bytes], header: Header) -> None:
    """Write HEADER to FILE."""
    file.write(
        _HEADER.pack(
            _MAGIC,
            CODECS.index(header.codec) + 1,
            header.frames,
            bytes.fromhex(header.base),
            header.base_size,
            bytes.fromhex(header.target),
            header.target_size,
        )
    )


def write_frame(file: IO[bytes], frame: Frame, payload: bytes) -> None:
    """Write FRAME and its PAYLOAD to FILE."""
    lengths = (frame.offset, frame.base_length, frame.target_length, len(payload))
    file.write(_FRAME.pack(*lengths) + payload)


def read_header(file: IO[bytes]) -> Header:
    """Return the header of the patch in FILE, which is read up to its first frame.

    Raises:
        PatchError: it is not the header of a patch.
    """
    magic, codec, frames, base, base_size, target, target_size = _HEADER.unpack(
        _exactly(file, _HEADER.size)
    )
    if magic != _MAGIC or not 0 < codec <= len(CODECS):
        raise PatchError("not a patch", why="it does not begin like one that is known here")
    if base_size > MAX_SIZE or not 0 < target_size <= MAX_SIZE:
        raise PatchError("not a patch", why=f"it speaks of {base_size} and {target_size} bytes")
    if not -(-target_size // FRAME_TARGET) <= frames <= 2 * (target_size // FRAME_TARGET + 1):
        raise PatchError("not a patch", why=f"{frames} frames make no {target_size} bytes")
    return Header(CODECS[codec - 1], base.hex(), base_size, target.hex(), target_size, frames)


def apply_patch(patch: IO[bytes], base: IO[bytes], out: IO[bytes]) -> Header:
    """Write to OUT what the patch in PATCH makes of BASE, in bounded memory.

    Whether the result is right is for the caller to see: its SHA-256 has been signed.

    Raises:
        PatchError: PATCH is damaged or no patch at all, or BASE is too short for it.
    """
    header = read_header(patch)
    unpack = _UNPACK[header.codec]
    for frame in _frames(patch, header):
        payload = _Payload(patch, frame.payload_length)
        written = 0
        for piece in unpack(payload, base, frame):
            written += len(piece)
            if written > frame.target_length:
                raise _bad("a frame makes more than it says")
            out.write(piece)
        if written != frame.target_length or payload.left:
            raise _bad("a frame does not make what it says")
    if patch.read(1):
        raise _bad("something follows its end")
    return header


def preload(codec: Codec) -> None:
    """Import what patches of CODEC need, for a process that will not be able to later.

    Raises:
        ImportError: it is not installed.
    """
    if codec == "zstd":
        zstd_module()
    else:
        import lzma  # noqa: F401  importing it is what this is for


def zstd_module() -> Any:
    """Return the module `compression.zstd`, or its backport where Python is older than 3.14.

    Raises:
        ImportError: it is not installed.
    """
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _frames(patch: IO[bytes], header: Header) -> Iterator[Frame]:
    left = header.target_size
    for _ in range(header.frames):
        frame = Frame(*_FRAME.unpack(_exactly(patch, _FRAME.size)))
        if not 0 < frame.target_length <= min(FRAME_TARGET, left):
            raise _bad("a frame is longer than it may be")
        window_end = frame.offset + frame.base_length
        if frame.base_length > FRAME_BASE or window_end > header.base_size:
            raise _bad("a frame looks at more of the base than it may")
        if not 0 < frame.payload_length <= MAX_PAYLOAD:
            raise _bad("a payload is longer than it may be")
        left -= frame.target_length
        yield frame
    if left:
        raise _bad("it ends before its target does")


class _Payload:
    """The bytes of one payload, which are read as they are needed."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self._file, self.left = file, length

    def more(self) -> bytes:
        """Return the next bytes; none at the end."""
        piece = _exactly(self._file, min(_PIECE, self.left))
        self.left -= len(piece)
        return piece


class _Decompressor(Protocol):
    """What LZMA and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Stream:
    """What a payload decompresses to, never more at a time than was asked for."""

    def __init__(
        self, payload: _Payload, decompressor: _Decompressor, errors: type[Exception]
    ) -> None:
        self._payload, self._decompressor, self._errors = payload, decompressor, errors

    def some(self, limit: int) -> bytes:
        """Return up to LIMIT bytes; none at the end."""
        unpacker = self._decompressor
        while not unpacker.eof:
            data = self._payload.more() if unpacker.needs_input else b""
            if unpacker.needs_input and not data:
                raise _bad("a payload ends early")
            try:
                piece = unpacker.decompress(data, limit)
            except (self._errors, EOFError, ValueError) as error:
                raise _bad(str(error)) from error
            if piece:
                return piece
        if unpacker.unused_data:
            raise _bad("something follows the end of a payload")
        return b""

    def exactly(self, count: int) -> bytes:
        """Return COUNT bytes."""
        data = self.some(count) if count else b""
        while len(data) < count:
            piece = self.some(count - len(data))
            if not piece:
                raise _bad("a payload ends early")
            data += piece
        return data


def _unpack_zstd(payload: _Payload, base: IO[bytes], frame: Frame) -> Iterator[bytes]:
    zstd = zstd_module()
    base.seek(frame.offset)
    prefix = None
    if frame.base_length >= MIN_PREFIX:
        window = zstd.ZstdDict(_exactly(base, frame.base_length), is_raw=True)
        prefix = window.as_prefix
    options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    stream = _Stream(payload, zstd.ZstdDecompressor(prefix, options), zstd.ZstdError)
    while piece := stream.some(_PIECE):
        yield piece


def _unpack_bsdiff(payload: _Payload, base: IO[bytes], frame: Frame) -> Iterator[bytes]:
    import lzma

    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": LZMA_DICTIONARY}]
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    stream = _Stream(payload, unpacker, lzma.LZMAError)
    place, left = 0, frame.target_length
    while left:
        seek, add, copy = RECORD.unpack(stream.exactly(RECORD.size))
        place, left = place + seek, left - add - copy
        if not add + copy or left < 0 or not 0 <= place <= frame.base_length - add:
            raise _bad("a record reaches out of its frame")
        base.seek(frame.offset + place)
        for length in _lengths(add):
            yield _added(_exactly(base, length), stream.exactly(length))
        for length in _lengths(copy):
            yield stream.exactly(length)
        place += add
    if stream.some(1):
        raise _bad("something follows the last record")


_UNPACK = {"zstd": _unpack_zstd, "bsdiff": _unpack_bsdiff}


def _lengths(count: int) -> Iterator[int]:
    """Yield the lengths of the pieces that COUNT bytes are handled in."""
    for start in range(0, count, _PIECE):
        yield min(_PIECE, count - start)


def _added(base: bytes, difference: bytes) -> bytes:
    """Return the sum of two strings of the same length, byte by byte, modulo 256.

    All bytes at once, in one large number: the lower seven bits of each are added, which cannot
    carry into the next byte, and the highest bit is put right after.
    """
    count = len(base)
    if difference.count(0) == count:
        return base
    low, high = _masks(count)
    one, two = int.from_bytes(base, "little"), int.from_bytes(difference, "little")
    return (((one & low) + (two & low)) ^ ((one ^ two) & high)).to_bytes(count, "little")


@lru_cache(4)
def _masks(count: int) -> tuple[int, int]:
    return int.from_bytes(b"\x7f" * count, "little"), int.from_bytes(b"\x80" * count, "little")


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _bad("it, or its base, ends early")
    return data


def _bad(why: str) -> PatchError:
    return PatchError("the patch cannot be applied", why=why)
