"""Where a repository is published: in a directory here, or at a fleet. Holds no offline key.

Both keep metadata and blobs and make what they are given visible in one step. Which models
there are is decided before (see `core.roles`).
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from edgepack.durable import BlobSink, sweep
from edgepack.errors import IntegrityError, UsageError
from edgepack.metadata import MetadataDirectory, OnlineKeys, parse, seal
from edgepack.offers import Offer, OfferDirectory, Offers
from edgepack.trust import EXPORT

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
        keys: Returns who signs snapshot and timestamp, given the root that will count.
        now: The time, UTC.
        life: How long a device believes the timestamp.
        export: It is a mirror of another repository.
    """

    def __init__(
        self,
        directory: Path,
        keys: Callable[[Root], OnlineKeys],
        now: datetime,
        life: timedelta,
        *,
        export: bool = False,
    ) -> None:
        self._export = export
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
        with self._usable():
            file = (self._blobs / sha256).open("rb")
        try:
            with file:
                take(pieces(file), sha256, size, path)
        except OSError as error:
            raise UsageError(
                f"cannot write {path}", why=error.strerror or str(error), reason="unwritable"
            ) from error

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

    def check(self, root: bytes) -> None:
        """Check that the directory is empty, or of the publisher whose first root is ROOT.

        Raises:
            IntegrityError: it is another publisher's (reason `bad_root`).
            UsageError: it is a mirror and shall be a repository, or the other way round.
        """
        with self._usable():
            self._check_kind()
            first = self._metadata.read("1.root.json")
        if first not in {None, root}:
            raise IntegrityError(
                f"{self._blobs.parent.parent} belongs to another publisher", reason="bad_root"
            )

    def file(self, sha256: str) -> Path:
        """Return where the blob SHA256 is, or would be."""
        return self._blobs / sha256

    def fetch_from(self, other: Published, sha256: str, size: int) -> None:
        """Copy the blob SHA256 of SIZE bytes from OTHER; whole or not at all.

        Raises:
            IntegrityError: what OTHER gives is not that blob.
            UsageError: the directory cannot be written.
        """
        with self._usable():
            self._blobs.mkdir(parents=True, exist_ok=True)
            sweep(self._blobs)
        other.fetch(sha256, size, self._blobs / sha256)

    def commit(self, files: Mapping[str, bytes], roles: Mapping[str, bytes]) -> int:
        """Write FILES, then snapshot and timestamp, which make them count.

        Raises:
            UsageError: the directory cannot be written, or somebody else published meanwhile.
        """
        with self._usable(), self._alone():
            self._check_kind()
            self._check_follows(roles)
            self._metadata.write_all(files)
            root = self._metadata.read(f"{self._metadata.versions('root')[-1]}.root.json")
            keys = self._keys(parse(root or b"", Root).signed)
            return seal(self._metadata, roles, keys, self._now, self._life, export=self._export)

    def _check_kind(self) -> None:
        """Check that a mirror does not become a repository, nor the other way round.

        Raises:
            UsageError: it would; devices would take its versions for a rollback.
        """
        last = self._metadata.timestamp()
        if last is not None and (last.unrecognized_fields.get(EXPORT) is True) != self._export:
            raise UsageError(
                f"{self._blobs.parent.parent} is {'no' if self._export else 'a'} mirror",
                why="a repository and a mirror of one are signed differently",
                fix="choose an empty directory",
                reason="wrong_kind",
            )

    def _check_follows(self, roles: Mapping[str, bytes]) -> None:
        """Check that nothing was published since ROLES were made from what was here.

        Raises:
            UsageError: something was; it would be lost, and devices would see two files of one
                version.
        """
        for role, data in self._metadata.current().items():
            here, new = (
                parse(each, Targets).signed.version for each in (data, roles.get(role, data))
            )
            if here > new or (here == new and roles.get(role, data) != data):
                raise UsageError(
                    "somebody else published meanwhile",
                    why=f"{role} {here} is here, and {role} {new} was to follow",
                    fix="run it again; nothing was changed",
                    reason="overtaken",
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other publishers out; a file system without locks has no others."""
        self._metadata.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._metadata.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

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
