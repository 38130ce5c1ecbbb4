"""Asks both repositories what this device may run. Fetches no model and installs nothing.

Two python-tuf updaters, one per repository, over whatever channel the device has; then the
cross-check of `edgepack.trust`; then the floors. python-tuf does not fsync and can be fed an
older state if its cache is lost: the floors are what makes "never back" survive a power cut,
and everything in the cache can be deleted at any time.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.metadata import Root, TargetFile, Targets

from edgepack.errors import UnreachableError
from edgepack.metadata import DEVICE, MIN_EPOCH, split_name, target_info
from edgepack.trust import (
    Approved,
    DeviceFacts,
    DirectorWord,
    ExamTarget,
    ImageWord,
    TargetInfo,
    TrustError,
    cross_check,
    exam_path,
)
from edgepack_agent.adapters.floors import Floors
from edgepack_agent.adapters.repository import MetadataChannel, Repository, in_our_words

__all__ = [
    "Approved",
    "DirectoryChannel",
    "ExamTarget",
    "MetadataChannel",
    "TrustClient",
    "TrustError",
    "remember",
]


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
        with in_our_words():
            director = self._refreshed("director", self._channel)
            word = _director_word(director.targets)
            remember(director, self._floors)
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
        with in_our_words():
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
        with in_our_words():
            self._floors.confirm(name, epoch)

    def _cross_check(
        self, wanted: TargetInfo, facts: DeviceFacts, channel: MetadataChannel
    ) -> Approved:
        image = self._refreshed("image", channel)
        word = _image_word(image, wanted)
        remember(image, self._floors)
        name = wanted.model.name
        return cross_check(wanted, word, facts, epoch_floor=self._floors.epoch(name))

    def _refreshed(self, repo: str, channel: MetadataChannel) -> Repository:
        now = self._now()
        self._floors.check_clock(now)
        repository = Repository(repo, self._directory / repo, channel, self._roots[repo], now)
        repository.refresh()
        self._floors.check_clock(now, repository.issued)
        return repository


def remember(repository: Repository, floors: Floors) -> None:
    """Refuse what is below a floor, then make what was seen durable and the new floor.

    Raises:
        TrustError: a role went back to an older version (reason `rollback`).
        OSError: the disk fails; the floors are as they were.
    """
    seen = repository.seen()
    for role, version in seen.items():
        if version < floors.role(role):
            raise TrustError(
                "rollback",
                f"{role.partition('@')[0]} went back to version {version}",
                why=f"this device has seen version {floors.role(role)}",
            )
    repository.sync()
    floors.raise_seen(seen, repository.issued)


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


def _image_word(image: Repository, wanted: TargetInfo) -> ImageWord:
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


def _info(file: TargetFile | None) -> TargetInfo | None:
    return target_info(file) if file is not None else None
