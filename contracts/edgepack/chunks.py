"""The chunk list of a bundle: a SHA-256 for every MiB of its large files. Fetches nothing.

A device that has one verifies a file while it arrives, keeps what is right and asks again for
what is not. A file of one chunk or less is not listed: its own digest says the same.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from edgepack import canonical
from edgepack.errors import IntegrityError

__all__ = ["CHUNK_SIZE", "MAX_LIST", "SCHEMA", "read_chunks", "write_chunks"]

SCHEMA = "edgepack.chunks/v1"
CHUNK_SIZE = 1024 * 1024
"""Bytes in one chunk; the last one of a file may be shorter."""
MAX_LIST = 1024 * 1024
"""Bytes a chunk list may have; 4 GiB of files need about 280 kB."""

_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}(?![\s\S])")]


class _ChunkList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal["edgepack.chunks/v1"]
    chunk_size: Annotated[int, msgspec.Meta(ge=CHUNK_SIZE, le=CHUNK_SIZE)]
    blobs: dict[_Sha256, tuple[_Sha256, ...]]


def write_chunks(blobs: Mapping[str, tuple[str, ...]]) -> bytes:
    """Return the chunk list of BLOBS: SHA-256 of a file to those of its chunks, all in hex."""
    return canonical.dumps({"schema": SCHEMA, "chunk_size": CHUNK_SIZE, "blobs": dict(blobs)})


def read_chunks(data: bytes) -> dict[str, tuple[str, ...]]:
    """Return SHA-256 of a file to the SHA-256s of its chunks, all in hex.

    Raises:
        IntegrityError: too long, not canonical, or not a chunk list.
    """
    if len(data) > MAX_LIST:
        raise _bad(f"{len(data)} bytes, at most {MAX_LIST} are read")
    try:
        return msgspec.convert(canonical.loads(data, what="chunk list"), _ChunkList).blobs
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from error


def _bad(why: str) -> IntegrityError:
    return IntegrityError("the chunk list is not valid", why=why, reason="bad_chunks")
