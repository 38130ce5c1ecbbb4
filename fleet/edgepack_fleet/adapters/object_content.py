"""Blobs by digest in an object store: S3 and what speaks like it, Google, Azure. Like `content`.

`PREFIX/sha256/HEX`. A blob arrives on the local disk first and is checked there, because a store
shows what it was given and cannot be asked for the digest of a large object.
"""

import contextlib
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from edgepack.errors import EdgepackError, UnreachableError, UnsupportedError, UsageError
from edgepack_fleet.adapters.broker import Address
from edgepack_fleet.adapters.content import Content, ContentStore, check_digest

__all__ = ["ObjectContent", "open_content"]

WINDOW = 4 * 1024 * 1024
"""Bytes that are asked for at once: a request takes longer than a block."""
KNOWN = 4096
"""Blobs whose size is remembered; a blob never changes."""
NOBODY = "0" * 64
CLIENT = {"connect_timeout": "5s", "timeout": "60s"}
RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=15)}


class ObjectContent:
    """The blobs in STORE.

    Args:
        store: A store of obstore; its prefix is ours.
        staging: A directory for blobs as they arrive.

    Raises:
        UnreachableError: the store does not answer, or not to us (reason `content`).
    """

    def __init__(self, store: Any, staging: Path) -> None:
        self._store, self._staging = store, staging
        self._size = lru_cache(KNOWN)(self._ask_size)
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.has(NOBODY)

    def put(
        self, sha256: str, stream: BinaryIO | Iterable[bytes], *, limit: int | None = None
    ) -> int:
        """Store the blob SHA256 from STREAM and return its size in bytes; see `ContentStore`."""
        import obstore

        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            arrived = ContentStore(Path(folder))
            size = arrived.put(sha256, stream, limit=limit)
            if not self.has(sha256):
                with _reaching(), arrived.path(sha256).open("rb") as file:
                    obstore.put(self._store, _key(sha256), file)
        return size

    def has(self, sha256: str) -> bool:
        """Return whether the blob SHA256 is here."""
        return self.size(sha256) is not None

    def size(self, sha256: str) -> int | None:
        """Return the size of the blob SHA256 in bytes; None if it is not here."""
        try:
            return self._size(sha256)
        except FileNotFoundError:
            return None

    def read(self, sha256: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return LENGTH bytes of the blob SHA256 from OFFSET, fewer at its end.

        Raises:
            FileNotFoundError: it is not here.
        """
        size = self._size(sha256)
        end = size if length is None else min(size, offset + length)
        return b"".join(self.pieces(sha256, offset, end, WINDOW))

    def pieces(self, sha256: str, first: int, end: int, length: int) -> Generator[bytes]:
        """Yield the bytes from FIRST to END of the blob SHA256 in pieces of LENGTH.

        Raises:
            FileNotFoundError: it is not here.
        """
        import obstore

        window = max(length, WINDOW - WINDOW % length)
        for start in range(first, end, window):
            stop = min(start + window, end)
            with _reaching():
                data = memoryview(
                    obstore.get_range(self._store, _key(sha256), start=start, end=stop)
                )
            for at in range(0, stop - start, length):
                yield bytes(data[at : at + length])

    def drop(self, sha256: str) -> None:
        """Remove the blob SHA256, if it is here."""
        import obstore

        with _reaching(), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, _key(sha256))
        self._size.cache_clear()

    def _ask_size(self, sha256: str) -> int:
        import obstore

        with _reaching():
            return int(obstore.head(self._store, _key(sha256))["size"])


def open_content(where: str | None, data: Path, *, shared: bool) -> Content:
    """Return the blobs of WHERE: a directory, a URL of an object store, or None: below DATA.

    Args:
        where: `s3://BUCKET/PREFIX`, `gs://...`, `az://...`, `file:///DIR` or a directory.
        data: The fleet's directory.
        shared: Whether other processes write there too.

    Raises:
        UsageError: WHERE cannot be read.
        UnreachableError: the store does not answer.
        UnsupportedError: what speaks to object stores is not installed.
    """
    if where is None:
        return ContentStore(data / "blobs", shared=shared)
    scheme, separator, rest = where.partition("://")
    if not separator or scheme == "file":
        return ContentStore(Path(rest if separator else where).absolute(), shared=shared)
    return ObjectContent(_store(where), data / "arriving")


def _store(url: str) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"nothing here speaks to {url.split(':', 1)[0]} stores",
            why=str(error),
            fix='pip install "edgepack[objects]"',
            reason="extra_missing",
        ) from error
    if url.startswith(("http:", "https:", "memory:")):
        raise UsageError(f"not a store to write to: {url}", fix="s3://BUCKET/PREFIX")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    if endpoint.startswith("http:") and not _is_here(endpoint):
        raise UsageError(
            f"refusing to speak to {endpoint} without TLS",
            why="credentials and models would cross the network in clear text",
            fix="give an https:// address in AWS_ENDPOINT_URL",
            reason="tls_needed",
        )
    try:
        # The library asks for other types than it can do with.
        client = CLIENT | {"allow_http": _is_here(endpoint)}
        options: Any = {"client_options": client, "retry_config": RETRY}
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise UsageError(
            f"not an object store: {url}", why=_first_line(error), fix="s3://BUCKET/PREFIX"
        ) from error


def _is_here(url: str) -> bool:
    """Return whether URL is of this machine."""
    return Address(urlsplit(url).hostname or "", 0).is_loopback


@contextlib.contextmanager
def _reaching() -> Iterator[None]:
    """Say what is wrong with the store as one of our errors; what is not there stays as it is."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise _silent(error) from error


def _silent(error: Exception) -> EdgepackError:
    return UnreachableError(
        "the object store does not do what it is asked for",
        why=_first_line(error),
        fix="check its address, the bucket and the credentials (AWS_ENDPOINT_URL, "
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, ...)",
        reason="content",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]


def _key(sha256: str) -> str:
    return f"sha256/{check_digest(sha256)}"
