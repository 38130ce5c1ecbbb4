"""One TUF repository as a device reads it: channels, cache, updater. Decides about no model.

python-tuf's updater does the verifying; here it gets our channel instead of HTTP, our clock,
smaller limits and durable files. Everything in the cache can be deleted at any time.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import unquote

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from edgepack.durable import sync_directory
from edgepack.trust import EXPORT, ISSUED, Reason, TrustError, line_role
from edgepack_agent.adapters.slim_tuf import FetcherInterface, Updater, UpdaterConfig

__all__ = [
    "CONFIG",
    "CacheChannel",
    "DirectoryChannel",
    "MetadataChannel",
    "Repository",
    "in_our_words",
    "is_export",
]

CONFIG = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=8,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=256 * 1024,
    targets_max_length=2 * 1024 * 1024,
)
"""Bytes and steps a repository may cost a device."""


class MetadataChannel(Protocol):
    """Where metadata comes from: MQTT, a directory, a test."""

    def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
        """Return the file NAME of REPO (`image` or `director`); None if there is none.

        Args:
            repo: Which repository.
            name: File name, e.g. `timestamp.json` or `3.root.json`.
            max_length: Bytes to read at most; returning more is an error here.

        Raises:
            UnreachableError: no answer.
        """
        ...


class DirectoryChannel:
    """The image repository in a directory, as `edgepack repo publish --repo DIR` writes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "metadata"

    def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
        """Return the file NAME; None if there is none, or REPO is not the image repository."""
        path = self._directory / name
        if repo != "image" or not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(max_length + 1)


class CacheChannel:
    """What a device has fetched before, in its cache DIRECTORY, for a site without a network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
        """Return the cached file NAME; None if there is none."""
        role = _role(name)
        cached = f"root_history/{name}" if role == Root.type else f"{role}.json"
        path = self._directory / cached
        return path.read_bytes()[: max_length + 1] if path.is_file() else None


def is_export(channel: MetadataChannel) -> bool:
    """Return whether CHANNEL leads to a mirror with a timestamp of its own; unverified."""
    data = channel.metadata("image", "timestamp.json", CONFIG.timestamp_max_length)
    return _marked(data or b"")


class Repository(Updater):
    """python-tuf's updater with the clock passed in, and its verified roles to look at.

    Args:
        name: `image` or `director`.
        directory: Its cache; made if it is missing.
        channel: Where metadata comes from.
        root: The first root.
        now: The time, UTC.
        export: Snapshot and timestamp have to be a mirror's own, or must not be.
        also: Other caches of the same repository, whose roots count too.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        channel: MetadataChannel,
        root: bytes,
        now: datetime,
        *,
        export: bool = False,
        also: tuple[Path, ...] = (),
    ) -> None:
        self._name, self._path, self._suffix = name, directory, "+export" if export else ""
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("tmp*"):
            leftover.unlink()
        fetcher = _Fetcher(name, channel, export=export, also=also)
        with _bad_root_if_broken(name):
            super().__init__(
                str(directory), "tuf:/", fetcher=fetcher, config=CONFIG, bootstrap=root
            )
        # It takes no clock; every expiry check of its trusted set reads this attribute.
        self._trusted_set.reference_time = now

    @property
    def targets(self) -> Targets:
        """The verified top role."""
        return self._trusted_set.targets

    @property
    def issued(self) -> int:
        """The newest signed time in this repository, Unix seconds; 0 if it has none."""
        times = [signed.unrecognized_fields.get(ISSUED, 0) for signed in self._trusted_set]
        return max((t for t in times if isinstance(t, int)), default=0)

    def line(self, name: str) -> Targets | None:
        """Return the verified role of the model line NAME, once one of its targets was asked."""
        role = line_role(name)
        delegated = self._trusted_set.contains(role, Targets.type)
        return cast("Targets", self._trusted_set[role]) if delegated else None

    def seen(self) -> dict[str, int]:
        """Return every verified role with its version, named with the keys that vouch for it.

        These are its own; and for targets and lines, whose versions the snapshot lists, those
        of the snapshot, too: new snapshot keys are how a publisher takes back versions that a
        thief drove too high (TUF specification 5.3.11).
        """
        root, targets = self._trusted_set.root, self._trusted_set.targets
        lines = (targets.delegations and targets.delegations.roles) or {}
        listed: list[tuple[Root | Targets, str]] = [(targets, line) for line in lines]
        listed += [(root, Targets.type)]
        by_snapshot = root.get_delegated_role(Snapshot.type).keyids
        keys = {
            role: [*delegator.get_delegated_role(role).keyids, *by_snapshot]
            for delegator, role in listed
            if self._trusted_set.contains(role, delegator.type)
        }
        for role in _SEALS:
            keys[role] = root.get_delegated_role(role).keyids
        return {f"{self._name}/root@": root.version} | {
            self._floor(role, keyids): self._trusted_set[role].version
            for role, keyids in keys.items()
        }

    def _floor(self, role: str, keyids: list[str]) -> str:
        """Return under which name a floor of ROLE is kept."""
        apart = self._suffix if role in _SEALS else ""
        return f"{self._name}/{role}@{_digest(keyids)}{apart}"

    def sync(self) -> None:
        """Make the cache durable, which python-tuf leaves to the operating system."""
        for directory in (self._path / "root_history", self._path):
            for path in directory.iterdir():
                if path.is_file() and not path.is_symlink():
                    _sync_file(path)
            sync_directory(directory)


class _Fetcher(FetcherInterface):
    """Lets an updater fetch by file name from a channel, with its limit, and raise at once."""

    def __init__(
        self, repo: str, channel: MetadataChannel, *, export: bool, also: tuple[Path, ...]
    ) -> None:
        self._repo, self._channel, self._export, self._also = repo, channel, export, also

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the metadata file at URL, of MAX_LENGTH bytes at most."""
        name = unquote(url.rpartition("/")[2])
        role = _role(name)
        data = self._channel.metadata(self._repo, name, max_length)
        if data is None and role == Root.type:
            data = self._known_root(name)
        if data is None:
            raise tuf_errors.DownloadHTTPError(f"there is no {self._repo} {name}", 404)
        if len(data) > max_length:
            raise tuf_errors.DownloadLengthMismatchError(
                f"{self._repo} {name} is longer than {max_length} bytes"
            )
        if role in _SEALS and _marked(data) != self._export:
            raise TrustError(
                "mismatch",
                "an exported mirror and a fleet's repository are mixed",
                why=f"the {role} {'is not' if self._export else 'is'} signed for a mirror",
            )
        return data

    def _known_root(self, name: str) -> bytes | None:
        """Return the root NAME that came another way: an older mirror may not have it."""
        paths = (cache / "root_history" / name for cache in self._also)
        return next((path.read_bytes() for path in paths if path.is_file()), None)

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise tuf_errors.DownloadError(f"only metadata is fetched here, not {url}")


_SEALS = (Timestamp.type, Snapshot.type)


def _role(name: str) -> str:
    """Return the role whose metadata the file NAME holds."""
    return name.removesuffix(".json").rpartition(".")[2]


def _marked(data: bytes) -> bool:
    """Return whether DATA says that it is signed for a mirror. If it is nothing, it does not."""
    try:
        signed = json.loads(data)["signed"]
        return isinstance(signed, dict) and signed.get(EXPORT) is True
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _digest(keyids: list[str]) -> str:
    return hashlib.sha256(",".join(sorted(keyids)).encode()).hexdigest()[:16]


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _bad_root_if_broken(repo: str) -> Iterator[None]:
    try:
        yield
    except tuf_errors.RepositoryError as error:
        raise TrustError(
            "bad_root", f"the first root of the {repo} repository is not valid", why=str(error)
        ) from error


@contextmanager
def in_our_words(*, mirror: bool = False) -> Iterator[None]:
    """Turn python-tuf's errors, and a failing disk, into TrustErrors with a reason.

    Args:
        mirror: It is a mirror that is read, so that the advice is about one.
    """
    try:
        yield
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        _, reason, what = next(words for words in _WORDS if isinstance(error, words[0]))
        fixes = _FIX | _MIRROR_FIX if mirror else _FIX
        raise TrustError(reason, what, why=str(error), fix=fixes.get(reason, "")) from error
    except OSError as error:
        raise TrustError("storage", "the metadata cannot be kept", why=str(error)) from error


_WORDS: tuple[tuple[type[Exception], Reason, str], ...] = (
    (tuf_errors.ExpiredMetadataError, "metadata_expired", "the metadata has expired"),
    (tuf_errors.UnsignedMetadataError, "bad_signature", "metadata is not signed by who must"),
    (tuf_errors.BadVersionNumberError, "rollback", "metadata went back to an older version"),
    (tuf_errors.LengthOrHashMismatchError, "mismatch", "metadata does not fit its snapshot"),
    (tuf_errors.DownloadLengthMismatchError, "endless_data", "metadata is longer than it may be"),
    (tuf_errors.DownloadHTTPError, "metadata_missing", "metadata is missing"),
    (Exception, "bad_metadata", "metadata cannot be used"),
)
"""python-tuf's errors, the narrow before the wide, with our reason and words."""
_FIX: dict[Reason, str] = {
    "metadata_expired": "the publisher or the fleet must sign again; inference goes on",
}
_MIRROR_FIX: dict[Reason, str] = {
    "metadata_expired": "export the mirror again: edgepack repo export; inference goes on",
    "metadata_missing": "the mirror is not whole: run edgepack repo export again",
    "rollback": "a newer mirror, or the fleet, has been here: export it again",
}
