"""Asks both repositories what this device may run. Fetches no model and installs nothing.

Two python-tuf updaters, one per repository, over whatever channel the device has; then the
cross-check of `edgepack.trust`; then the floors. python-tuf does not fsync and can be fed an
older state if its cache is lost: the floors are what makes "never back" survive a power cut,
and everything in the cache can be deleted at any time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import unquote

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from edgepack.durable import sync_directory
from edgepack.errors import UnreachableError
from edgepack.metadata import DEVICE, ISSUED, MIN_EPOCH, split_name, target_info
from edgepack.trust import (
    Approved,
    DeviceFacts,
    DirectorWord,
    ExamTarget,
    ImageWord,
    Reason,
    TargetInfo,
    TrustError,
    cross_check,
    exam_path,
    line_role,
)
from edgepack_agent.adapters.floors import Floors

__all__ = [
    "Approved",
    "DirectoryChannel",
    "ExamTarget",
    "MetadataChannel",
    "TrustClient",
    "TrustError",
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


class TrustClient:
    """The trust of one device: its roots, its cache of metadata and its floors.

    Args:
        directory: Cache of metadata; may be lost.
        device: This device's id.
        channel: Where metadata comes from.
        image_root: First root of the image repository, as the publisher gave it.
        director_root: First root of the director, as enrolment gave it.
        floors: What this device has seen; must not be lost.
        now: The device's clock, UTC.
    """

    def __init__(
        self,
        directory: Path,
        device: str,
        channel: MetadataChannel,
        image_root: bytes,
        director_root: bytes,
        floors: Floors,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory, self._device, self._channel = directory, device, channel
        self._roots = {"image": image_root, "director": director_root}
        self._floors, self._now = floors, now

    def approve(self, facts: DeviceFacts) -> Approved | None:
        """Return the model this device shall run now; None if the director wants none.

        Raises:
            TrustError: something does not hold; nothing may be installed.
            UnreachableError: no answer; what was approved before stays as it is.
        """
        with _in_our_words():
            director = self._refreshed("director", self._channel)
            word = _director_word(director.targets)
            self._remember(director)
            wanted = word.wanted(self._device)
            return self._cross_check(wanted, facts, self._channel) if wanted else None

    def approve_local(self, wanted: TargetInfo, facts: DeviceFacts) -> Approved:
        """Return the model of a bundle at hand, if the image repository approves it.

        Args:
            wanted: What the bundle is: `edgepack.trust.model_target` of its manifests.
            facts: What this device can run.

        Without an answer the cached metadata decides, for as long as it has not expired.

        Raises:
            TrustError: something does not hold; nothing may be installed.
        """
        with _in_our_words():
            try:
                return self._cross_check(wanted, facts, self._channel)
            except UnreachableError:
                return self._cross_check(wanted, facts, _CacheChannel(self._directory))

    def confirm(self, name: str, epoch: int) -> None:
        """Never again run a model of the line NAME below EPOCH: one of it was committed.

        To be called after every commit, and only then: an update that is rolled back must
        leave the way back open.

        Raises:
            TrustError: the floors cannot be written (reason `storage`).
        """
        with _in_our_words():
            self._floors.confirm(name, epoch)

    def _cross_check(
        self, wanted: TargetInfo, facts: DeviceFacts, channel: MetadataChannel
    ) -> Approved:
        image = self._refreshed("image", channel)
        word = _image_word(image, wanted)
        self._remember(image)
        name = wanted.model.name
        return cross_check(wanted, word, facts, epoch_floor=self._floors.epoch(name))

    def _refreshed(self, repo: str, channel: MetadataChannel) -> "_Repository":
        now = self._now()
        self._floors.check_clock(now)
        directory = self._directory / repo
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob("tmp*"):
            leftover.unlink()
        repository = _Repository(repo, directory, _Fetcher(repo, channel), self._roots[repo], now)
        repository.refresh()
        self._floors.check_clock(now, repository.issued)
        return repository

    def _remember(self, repository: "_Repository") -> None:
        """Refuse what is below a floor, then make what was seen durable and the new floor."""
        seen = repository.seen()
        for role, version in seen.items():
            if version < self._floors.role(role):
                raise TrustError(
                    "rollback",
                    f"{role.partition('@')[0]} went back to version {version}",
                    why=f"this device has seen version {self._floors.role(role)}",
                )
        repository.sync()
        self._floors.raise_seen(seen, repository.issued)


class _Repository(Updater):
    """python-tuf's updater with the clock passed in, and its verified roles to look at."""

    def __init__(
        self, name: str, directory: Path, fetcher: "_Fetcher", root: bytes, now: datetime
    ) -> None:
        self._name, self._path = name, directory
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
        """Return every verified role with its version, named with the keys it is signed with."""
        root, targets = self._trusted_set.root, self._trusted_set.targets
        lines = (targets.delegations and targets.delegations.roles) or {}
        roles: list[tuple[Root | Targets, str]] = [(targets, line) for line in lines]
        roles += [(root, role) for role in (Timestamp.type, Snapshot.type, Targets.type)]
        return {f"{self._name}/root@": root.version} | {
            f"{self._name}/{role}@{_key_digest(delegator, role)}": self._trusted_set[role].version
            for delegator, role in roles
            if self._trusted_set.contains(role, delegator.type)
        }

    def sync(self) -> None:
        """Make the cache durable, which python-tuf leaves to the operating system."""
        for directory in (self._path / "root_history", self._path):
            for path in directory.iterdir():
                if path.is_file() and not path.is_symlink():
                    _sync_file(path)
            sync_directory(directory)


class _Fetcher(FetcherInterface):
    """Lets an updater fetch by file name from a channel, with its limit, and raise at once."""

    def __init__(self, repo: str, channel: MetadataChannel) -> None:
        self._repo, self._channel = repo, channel

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the metadata file at URL, of MAX_LENGTH bytes at most."""
        name = unquote(url.rpartition("/")[2])
        data = self._channel.metadata(self._repo, name, max_length)
        if data is None:
            raise tuf_errors.DownloadHTTPError(f"there is no {self._repo} {name}", 404)
        if len(data) > max_length:
            raise tuf_errors.DownloadLengthMismatchError(
                f"{self._repo} {name} is longer than {max_length} bytes"
            )
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise tuf_errors.DownloadError(f"only metadata is fetched here, not {url}")


class _CacheChannel:
    """What a device has fetched before, for a site without a network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def metadata(self, repo: str, name: str, max_length: int) -> bytes | None:
        _, role = split_name(name)
        cached = f"root_history/{name}" if role == Root.type else f"{role}.json"
        path = self._directory / repo / cached
        return path.read_bytes()[: max_length + 1] if path.is_file() else None


def _director_word(targets: Targets) -> DirectorWord:
    device = targets.unrecognized_fields.get(DEVICE)
    return DirectorWord(
        device if isinstance(device, str) else "",
        tuple(target_info(file) for file in targets.targets.values()),
        targets.delegations is not None,
    )


def _image_word(image: _Repository, wanted: TargetInfo) -> ImageWord:
    name = wanted.model.name
    target = image.get_targetinfo(wanted.path)
    line = image.line(name)
    if target is None or line is None:
        return ImageWord(None, None, 0)
    exam = line.targets.get(exam_path(name))
    min_epoch = line.unrecognized_fields.get(MIN_EPOCH, 0)
    if not isinstance(min_epoch, int) or min_epoch < 0:
        raise TrustError("bad_metadata", f"the line {name} has a floor that is no number")
    return ImageWord(target_info(target), _info(exam), min_epoch)


def _key_digest(delegator: Root | Targets, role: str) -> str:
    keyids = delegator.get_delegated_role(role).keyids
    return hashlib.sha256(",".join(sorted(keyids)).encode()).hexdigest()[:16]


def _info(file: TargetFile | None) -> TargetInfo | None:
    return target_info(file) if file is not None else None


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
def _in_our_words() -> Iterator[None]:
    """Turn python-tuf's errors, and a failing disk, into TrustErrors with a reason."""
    try:
        yield
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        _, reason, what = next(words for words in _WORDS if isinstance(error, words[0]))
        raise TrustError(reason, what, why=str(error), fix=_FIX.get(reason, "")) from error
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
