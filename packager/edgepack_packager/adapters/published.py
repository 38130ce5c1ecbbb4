"""Where a repository is published: in a directory here, or at a fleet. Holds no offline key.

Both keep metadata and blobs and make what they are given visible in one step. Which models
there are is decided before (see `core.roles`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

from tuf.api.metadata import Snapshot, Timestamp

from edgepack.durable import BlobSink, sweep
from edgepack.errors import UsageError
from edgepack.metadata import MetadataDirectory, OnlineKeys, parse, seal
from edgepack.offers import Offer, OfferDirectory, Offers

__all__ = ["DirectoryRepository", "Published", "current_roles"]

PIECE = 1024 * 1024


class Published(Protocol):
    """A repository that can be read and added to."""

    def metadata(self, name: str) -> bytes | None:
        """Return the metadata file NAME; None if there is none."""
        ...

    def has(self, sha256: str, size: int) -> bool:
        """Return whether the blob SHA256 of SIZE bytes is there."""
        ...

    def put(self, sha256: str, size: int, file: BinaryIO) -> None:
        """Store the blob SHA256 of SIZE bytes from FILE."""
        ...

    def fetch(self, sha256: str, size: int, path: Path) -> None:
        """Write the blob SHA256 of SIZE bytes to PATH, checked."""
        ...

    def offers(self, target: str, size: int) -> Offers:
        """Return the patches that are offered to the blob TARGET of SIZE bytes."""
        ...

    def offer(self, target: str, size: int, more: Sequence[Offer]) -> None:
        """Offer MORE patches, which are there already, to the blob TARGET of SIZE bytes."""
        ...

    def commit(self, files: Mapping[str, bytes], roles: Mapping[str, bytes]) -> int:
        """Make FILES visible, all at once, and return the version of the snapshot.

        Args:
            files: Metadata files that are new, by name.
            roles: Every targets role as it shall be, by name.
        """
        ...


class DirectoryRepository:
    """A repository in DIRECTORY: `metadata/` and `blobs/sha256/`, for a USB stick or a web server.

    Args:
        directory: Made if it is missing.
        keys: Sign snapshot and timestamp.
        now: The time, UTC.
        life: How long a device believes the timestamp.
    """

    def __init__(self, directory: Path, keys: OnlineKeys, now: datetime, life: timedelta) -> None:
        self._metadata = MetadataDirectory(directory / "metadata")
        self._blobs = directory / "blobs" / "sha256"
        self._offers = OfferDirectory(directory / "patches")
        self._keys, self._now, self._life = keys, now, life

    def metadata(self, name: str) -> bytes | None:
        """Return the metadata file NAME; None if there is none.

        Raises:
            UsageError: the directory cannot be read.
        """
        with self._usable():
            return self._metadata.read(name)

    def has(self, sha256: str, size: int) -> bool:
        """Return whether the blob SHA256 of SIZE bytes is there."""
        path = self._blobs / sha256
        return path.is_file() and path.stat().st_size == size

    def put(self, sha256: str, size: int, file: BinaryIO) -> None:
        """Store the blob SHA256 of SIZE bytes from FILE; whole or not at all.

        Raises:
            UsageError: the directory cannot be written.
        """
        with self._usable():
            self._blobs.mkdir(parents=True, exist_ok=True)
            sweep(self._blobs)
            take(pieces(file), sha256, size, self._blobs / sha256)

    def fetch(self, sha256: str, size: int, path: Path) -> None:
        """Write the blob SHA256 of SIZE bytes to PATH, checked.

        Raises:
            UsageError: it is not there, or PATH cannot be written.
            IntegrityError: it is not what it was.
        """
        with self._usable(), (self._blobs / sha256).open("rb") as file:
            take(pieces(file), sha256, size, path)

    def offers(self, target: str, size: int) -> Offers:
        """Return the patches that are offered to the blob TARGET of SIZE bytes."""
        return self._offers.read(target, size)

    def offer(self, target: str, size: int, more: Sequence[Offer]) -> None:
        """Offer MORE patches to the blob TARGET of SIZE bytes; those they replace go.

        Raises:
            IntegrityError: they are not smaller than it.
            UsageError: the directory cannot be written.
        """
        with self._usable():
            for patch in self._offers.add(target, size, more):
                (self._blobs / patch).unlink(missing_ok=True)

    def commit(self, files: Mapping[str, bytes], roles: Mapping[str, bytes]) -> int:
        """Write FILES, then snapshot and timestamp, which make them count.

        Raises:
            UsageError: the directory cannot be written.
        """
        with self._usable():
            for name, data in files.items():
                self._metadata.write(name, data)
            return seal(self._metadata, roles, self._keys, self._now, self._life)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"cannot use the repository in {self._blobs.parent.parent}",
                why=error.strerror or str(error),
                reason="unwritable",
            ) from error


def current_roles(repository: Published) -> dict[str, bytes]:
    """Return the targets roles of REPOSITORY by name, unverified."""
    timestamp = repository.metadata("timestamp.json")
    if timestamp is None:
        return {}
    version = parse(timestamp, Timestamp).signed.snapshot_meta.version
    snapshot = parse(repository.metadata(f"{version}.snapshot.json") or b"", Snapshot).signed
    files = {n.removesuffix(".json"): f"{meta.version}.{n}" for n, meta in snapshot.meta.items()}
    found = {role: repository.metadata(name) for role, name in files.items()}
    return {role: data for role, data in found.items() if data is not None}


def take(content: Iterable[bytes], sha256: str, size: int, path: Path) -> None:
    """Write CONTENT to PATH as the blob SHA256 of SIZE bytes; whole or not at all.

    Raises:
        IntegrityError: it is not that blob.
        OSError: it cannot be written.
    """
    with BlobSink(path, sha256, size) as sink:
        for piece in content:
            sink.write(piece)


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of FILE, at most 1 MiB at a time."""
    return iter(lambda: file.read(PIECE), b"")
